"""Runs the window of X-AnyLabeling without a screen; started by the tests, in its environment.

Arguments: the image.  The first line of the input has the settings; then it reads one JSON object
per line, does what a user does with the mouse, and answers each with one line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import yaml
from anylabeling import config
from anylabeling.resources import resources  # noqa: F401 - registers the icons
from anylabeling.views.labeling.widgets.remote_server_dialog import RemoteServerDialog
from anylabeling.views.mainwindow import MainWindow
from PyQt6.QtCore import QPointF, Qt
from PyQt6.QtTest import QTest
from PyQt6.QtWidgets import QApplication, QDialog

TIMEOUT_S = 60.0


class Window:
    """The main window with an image."""

    def __init__(self, settings: dict[str, Any], image: str) -> None:
        path = config.current_config_file = f"{config.get_work_directory()}/.xanylabelingrc"
        with open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump({"remote_server_settings": settings, "language": "en_US"}, file)
        self.app = QApplication(sys.argv[:1])
        # The dialog shows the settings, which the user accepts.
        RemoteServerDialog.exec = lambda _: QDialog.DialogCode.Accepted
        self.window = MainWindow(self.app, config=config.get_config(path), filename=image)
        self.window.resize(1280, 800)
        self.window.show()
        self.view = self.window.labeling_widget.view
        self.tools = self.view.auto_labeling_widget
        # The status line shows each message until the next one.
        self.messages: list[str] = []
        self.tools.model_manager.new_model_status.connect(self.messages.append)
        self.wait(lambda: self.view.canvas.pixmap is not None and self.view.image_path)

    def wait(self, condition: Callable[[], Any]) -> None:
        """Process events until a condition holds."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, "the window does not react"
            self.app.processEvents()
            time.sleep(0.005)

    def choose(self, given: dict[str, Any]) -> None:
        """Choose the model `Remote-Server`, whose first model and task are then selected."""
        self.view.toggle_auto_labeling_widget()
        name = next(name for name in self.tools.model_info if "remote_server" in name)
        self.tools.on_model_selected("CVHub", name)
        self.wait(self.tools.remote_task_select_combobox.count)

    def task(self, given: dict[str, Any]) -> None:
        """Choose a task."""
        box = self.tools.remote_task_select_combobox
        box.setCurrentIndex(box.findData(given["name"]))

    def click(self, given: dict[str, Any]) -> None:
        """Choose a button for points, click into the image, and wait for the answer."""
        getattr(self.tools, given["button"]).click()
        canvas = self.view.canvas
        point = (QPointF(given["x"], given["y"]) + canvas.offset_to_center()) * canvas.scale
        QTest.mouseMove(canvas, point.toPoint())
        self._predicting(
            lambda: QTest.mouseClick(
                canvas,
                Qt.MouseButton.LeftButton,
                Qt.KeyboardModifier.NoModifier,
                point.toPoint(),
            )
        )

    def run(self, given: dict[str, Any]) -> None:
        """Press the button `Run`."""
        self._predicting(self.tools.button_run.click)

    def _predicting(self, act: Callable[[], Any]) -> None:
        manager = self.tools.model_manager
        finished: list[None] = []
        connection = manager.prediction_finished.connect(lambda: finished.append(None))
        act()
        # Before the program has noticed the end of its thread, it cannot start another one.
        self.wait(lambda: finished and manager.model_execution_thread is None)
        manager.prediction_finished.disconnect(connection)

    def save(self, given: dict[str, Any]) -> None:
        """Save a screenshot."""
        self.window.grab().save(given["path"])

    def state(self) -> dict[str, Any]:
        """Return what the user sees."""
        tasks = self.tools.remote_task_select_combobox
        return {
            "tasks": [tasks.itemText(index) for index in range(tasks.count())],
            "buttons": [
                name
                for name in self.tools.supported_remote_widgets
                if getattr(self.tools, name).isVisible()
            ],
            "messages": self.messages,
            "shapes": [
                {
                    "label": shape.label,
                    "type": shape.shape_type,
                    "points": [[point.x(), point.y()] for point in shape.points],
                }
                for shape in self.view.canvas.shapes
            ],
        }


def main() -> None:
    """Answer until the input ends."""
    window = Window(json.loads(sys.stdin.readline()), sys.argv[1])
    for line in sys.stdin:
        given = json.loads(line)
        window.messages.clear()
        getattr(window, given["do"])(given)
        # The program writes its own lines too.
        print("ANSWER", json.dumps(window.state()), flush=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
