"""Runs the client of X-AnyLabeling without a screen; started by the tests, in its environment.

Reads one JSON object per line and answers each with one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import yaml
from anylabeling import config
from anylabeling.services.auto_labeling.remote_server import RemoteServer
from PyQt6.QtGui import QImage


def open_client(settings: dict[str, Any], messages: list[str]) -> RemoteServer:
    """Return the program's client, with its user's settings."""
    config.current_config_file = f"{config.get_work_directory()}/.xanylabelingrc"
    with open(config.current_config_file, "w", encoding="utf-8") as file:
        yaml.safe_dump({"remote_server_settings": settings}, file)
    model = {"type": "remote_server", "name": "remote_server", "display_name": "Remote-Server"}
    return RemoteServer({**model, "timeout": 60}, messages.append)


def choose(client: RemoteServer, given: dict[str, Any]) -> dict[str, Any]:
    """Choose the first model and one of its tasks, as the window does."""
    models = client.get_available_models()
    if not models:
        return {"models": {}}
    model = next(iter(models))
    client.set_model_id(model)
    client.set_task(given.get("task", models[model]["available_tasks"][0]["id"]))
    values = {widget["name"]: widget["value"] for widget in models[model]["widgets"]}
    preserve = values["toggle_preserve_existing_annotations"]
    client.set_auto_labeling_preserve_existing_annotations_state(preserve)
    return {"models": models, "batch": client.get_batch_processing_mode()}


def predict(client: RemoteServer, given: dict[str, Any]) -> dict[str, Any]:
    """Predict as the window does after a click; without *path*, of the image in memory."""
    client.set_auto_labeling_marks(given.get("marks", []))
    client.set_mask_fineness(given.get("epsilon", 0.001))
    image = QImage(given["image"])
    path = given["image"] if given.get("path", True) else ""
    result = client.predict_shapes(image, path, given.get("text"))
    return {
        "replace": result.replace,
        "shapes": [
            {
                "label": shape.label,
                "type": shape.shape_type,
                "score": shape.score,
                "points": [[point.x(), point.y()] for point in shape.points],
            }
            for shape in result.shapes
        ],
    }


def main() -> None:
    """Answer until the input ends; the first line has the settings."""
    messages: list[str] = []
    client = open_client(json.loads(sys.stdin.readline()), messages)
    commands: dict[str, Callable[..., dict[str, Any]]] = {"choose": choose, "predict": predict}
    for line in sys.stdin:
        given = json.loads(line)
        messages.clear()
        answer = commands[given["do"]](client, given)
        # The program writes its own lines too.
        print("ANSWER", json.dumps({**answer, "messages": messages}), flush=True)


if __name__ == "__main__":
    main()
