"""Prompts in the page, by mouse: the masks are those of the server at what is seen there."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import pytest
from playwright.async_api import expect
from samserve.app import Running
from samserve.client import Client, Mask, Prompt
from samserve.v1 import samserve_pb2 as pb

from tests.web import photos
from tests.web.page import WebPage
from tests.web.photos import centre_of, intersection_over_union
from tests.web.serving import OTHER_MODEL

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="package")]

CUP = (300, 160)
"""A point in the photograph of coffee."""


async def predicted(service: Running, image: bytes, prompt: Prompt, **options: str) -> list[Mask]:
    """Return the server's masks for a prompt, by the Python client."""
    async with Client(service.address) as client:
        embedding = await client.embed(image)
        found = await client.predict(embedding, [prompt], **options)  # type: ignore[arg-type]
    return list(found.results[0])


async def exported_mask(page: WebPage) -> npt.NDArray[np.bool_]:
    """Return the pixels of the only object."""
    _, content = await page.download("Masks (PNG)")
    return photos.mask_of(content)


async def test_click_on_a_coin_segments_that_coin(service: Running, page: WebPage) -> None:
    await page.open_sample("coins")
    coins = photos.coin_masks()
    found = []
    for number, coin in enumerate(coins[:4]):
        if number:
            await page.button("New object").click()
        request = await page.click(*centre_of(coin))
        found.append(request.prompts[0].points[0])
    await expect(page.objects).to_have_count(4)

    _, content = await page.download("Masks (PNG)")
    masks = photos.masks_of_archive(content)
    assert len(masks) == 4
    for mask, coin, point in zip(masks, coins, found, strict=False):
        assert intersection_over_union(mask, coin) > 0.75
        answers = await predicted(
            service, photos.sample("coins"), Prompt(points=[(point.x, point.y)]), multimask="all"
        )
        best = max(answers, key=lambda answer: answer.predicted_iou)
        np.testing.assert_array_equal(mask, best.array)


async def test_one_click_has_three_answers_of_which_one_is_chosen(
    service: Running, page: WebPage
) -> None:
    await page.open_sample("coffee")
    point = (await page.click(*CUP)).prompts[0].points[0]
    expected = await predicted(
        service, photos.sample("coffee"), Prompt(points=[(point.x, point.y)]), multimask="all"
    )
    best = int(np.argmax([mask.predicted_iou for mask in expected]))

    names = [f"Answer {n}, score {mask.predicted_iou:.2f}" for n, mask in enumerate(expected, 1)]
    for number, name in enumerate(names):
        answer = page.answers.nth(number)
        await expect(answer).to_have_accessible_name(name)
        await expect(answer).to_be_checked(checked=number == best)
    assert await page.region("Answers").locator("canvas, img").count() == 3
    for number, mask in enumerate(expected):
        await page.region("Answers").locator("label").nth(number).click()
        await expect(page.answers.nth(number)).to_be_checked()
        np.testing.assert_array_equal(await exported_mask(page), mask.array)
    # Choosing asks nothing.
    assert sum(each.include_low_res_logits for each in page.traffic.predictions()) == 1


async def test_mask_is_drawn_where_it_is(page: WebPage) -> None:
    await page.open_sample("coins")
    await page.click(*centre_of(photos.coin_masks()[0]))
    mask = await exported_mask(page)
    await page.page.mouse.move(2, 2)
    await page.button("Show object 1").click()
    await page.settled()
    hidden = await page.pixels()
    await page.button("Show object 1").click()
    await page.settled()
    shown = await page.pixels()

    drawn = page.screen.in_image((hidden != shown).any(axis=2), *mask.shape)
    assert intersection_over_union(drawn, mask) > 0.85


async def test_background_click_refines_the_chosen_answer(service: Running, page: WebPage) -> None:
    await page.open_sample("coffee")
    first = (await page.click(*CUP)).prompts[0].points[0]
    image, point = photos.sample("coffee"), (first.x, first.y)
    answers = await predicted(service, image, Prompt(points=[point]), multimask="all")
    async with Client(service.address) as client:
        found = await client.predict(
            image, [Prompt(points=[point])], multimask="all", low_res_logits=True
        )
    answers = list(found.results[0])
    chosen = max(answers, key=lambda answer: answer.predicted_iou)

    for clicked in (
        await page.click(40, 40, button="right"),
        await page.click(560, 360, modifiers=["Shift"]),
        await page.click(40, 360, modifiers=["Alt"]),
    ):
        assert [each.label for each in clicked.prompts[0].points][1:] == [2] * (
            len(clicked.prompts[0].points) - 1
        )
    await page.choose_tool("Background")
    last = await page.click(560, 40)
    assert [each.label for each in last.prompts[0].points] == [1, 2, 2, 2, 2]

    # The second click asked for a refinement of the answer that was chosen.
    assert chosen.low_res_logits is not None
    second = page.traffic.answers()[1].prompts[0]
    np.testing.assert_array_equal(
        np.frombuffer(second.mask.low_res_logits, "<f4"), chosen.low_res_logits.ravel()
    )
    await expect(page.answers).to_have_count(1)


async def test_box_is_dragged(service: Running, page: WebPage) -> None:
    await page.open_sample("coffee")
    await page.choose_tool("Box")
    async with page.prompting() as sent:
        await page.screen.drag((180, 60), (420, 300))
    box = sent[0].prompts[0].box
    np.testing.assert_allclose(
        [box.x_min, box.y_min, box.x_max, box.y_max], [180, 60, 420, 300], atol=1
    )
    corners = (box.x_min, box.y_min, box.x_max, box.y_max)
    (expected,) = await predicted(service, photos.sample("coffee"), Prompt(box=corners))
    np.testing.assert_array_equal(await exported_mask(page), expected.array)

    # A point is added to it.
    await page.choose_tool("Foreground")
    refined = await page.click(*CUP)
    assert refined.prompts[0].box == box
    assert len(refined.prompts[0].points) == 1


async def test_escape_ends_a_drag_without_a_call(page: WebPage) -> None:
    await page.open_sample("coffee")
    await page.choose_tool("Box")
    await page.screen.move_to(180, 60)
    await page.page.mouse.down()
    await page.screen.move_to(420, 300)
    await page.page.keyboard.press("Escape")
    await page.page.mouse.up()
    await page.settled()

    assert page.traffic.answers() == []
    await expect(page.objects).to_have_count(0)


async def test_undo_and_redo_restore_prompts_and_masks(page: WebPage) -> None:
    await page.open_sample("coffee")
    await expect(page.button("Undo")).to_be_disabled()
    await page.click(*CUP)
    first = await exported_mask(page)
    await page.click(430, 250)
    second = await exported_mask(page)
    assert (first != second).any()

    await page.button("Undo").click()
    await expect(page.objects).to_contain_text("1 point")
    await page.settled()
    np.testing.assert_array_equal(await exported_mask(page), first)
    await page.page.keyboard.press("Control+Shift+Z")
    await expect(page.objects).to_contain_text("2 points")
    await page.settled()
    np.testing.assert_array_equal(await exported_mask(page), second)
    await page.page.keyboard.press("Control+Z")
    await page.page.keyboard.press("Control+Z")
    await expect(page.objects).to_have_count(0)
    await expect(page.button("Undo")).to_be_disabled()
    await page.button("Redo").click()
    await expect(page.objects).to_have_count(1)
    await page.settled()
    np.testing.assert_array_equal(await exported_mask(page), first)
    await page.button("Clear prompts").click()
    await expect(page.objects).to_contain_text("no prompts")
    await expect(page.button("Masks (PNG)")).to_be_disabled()


async def test_preview_of_a_click_is_shown_under_the_pointer_only(
    service: Running, page: WebPage
) -> None:
    await page.open_sample("coffee")
    await page.page.mouse.move(2, 2)
    await page.settled()
    before = await page.pixels()
    await page.screen.move_to(*CUP)
    await page.until_counted("answered", 1)
    await page.settled()
    during = await page.pixels()
    await page.page.mouse.move(2, 2)
    await page.settled()
    after = await page.pixels()

    point = page.traffic.predictions()[-1].prompts[0].points[0]
    (expected,) = await predicted(
        service, photos.sample("coffee"), Prompt(points=[(point.x, point.y)])
    )
    drawn = page.screen.in_image((before != during).any(axis=2), *expected.array.shape)
    assert intersection_over_union(drawn, expected.array) > 0.7
    np.testing.assert_array_equal(before, after)
    # Nothing was clicked.
    await expect(page.objects).to_have_count(0)


async def test_objects_are_named_coloured_hidden_and_deleted(page: WebPage) -> None:
    await page.open_sample("coins")
    coins = photos.coin_masks()
    for number in range(3):
        await page.page.keyboard.press("n")
        await page.click(*centre_of(coins[number]))
    await expect(page.objects).to_have_count(3)
    colours = [await page.page.get_by_label(f"Colour of object {n}").input_value() for n in (1, 2)]
    assert colours[0] != colours[1]

    name = page.page.get_by_role("textbox", name="Name of object 2")
    await name.fill('Großer "Taler" <2>')
    await name.press("Enter")
    await page.page.get_by_label("Colour of object 2").fill("#12ab34")
    await page.settled()
    shown = await page.pixels()
    assert (np.abs(shown.astype(int) - (0x12, 0xAB, 0x34)).max(axis=2) < 12).any()
    await page.button("Show object 2").click()
    await expect(page.button("Show object 2")).to_have_attribute("aria-pressed", "false")
    await page.page.mouse.move(2, 2)
    await page.settled()
    hidden = await page.pixels()
    assert not (np.abs(hidden.astype(int) - (0x12, 0xAB, 0x34)).max(axis=2) < 12).any()
    await page.button("Delete object 1").click()
    await expect(page.objects).to_have_count(2)
    await expect(page.page.get_by_role("textbox", name="Name of object 1")).to_have_value(
        'Großer "Taler" <2>'
    )

    # Clicks belong to the object that is edited.
    edit = page.page.get_by_role("button", name=re.compile("(edit|active) object 1", re.IGNORECASE))
    await expect(edit).to_have_attribute("aria-pressed", "false")
    await edit.click()
    await expect(edit).to_have_attribute("aria-pressed", "true")
    request = await page.click(300, 250)
    assert len(request.prompts[0].points) == 2


async def test_another_model_encodes_the_image_again(service: Running, page: WebPage) -> None:
    await page.open_sample("coins")
    await page.click(*centre_of(photos.coin_masks()[0]))
    before = page.traffic.count("Embed")
    model = page.page.get_by_label("Model")
    await expect(model.locator("option")).to_have_text(["sam_tiny", OTHER_MODEL])

    await model.select_option(OTHER_MODEL)
    await expect(page.objects).to_have_count(0)
    await page.settled()
    await page.encoded(*photos.SAMPLE_SIZES["coins"])
    request = await page.click(*centre_of(photos.coin_masks()[0]))

    later = [body for name, body in page.traffic.calls if name == "Embed"][before:]
    assert [pb.EmbedRequest.FromString(body).model for body in later] == [OTHER_MODEL] * len(later)
    assert later
    async with Client(service.address) as client:
        embedding = await client.embed(photos.sample("coins"), model=OTHER_MODEL)
    assert request.embedding_id == embedding.id


async def test_times_of_each_step_are_shown(page: WebPage) -> None:
    await page.open_sample("coins")
    await page.screen.move_to(100, 60)
    await page.until_counted("answered", 1)
    await page.click(100, 60)

    times = page.region("Times")
    for action in ("Encode", "Preview", "Click"):
        row = times.get_by_role("row", name=re.compile(f"^{action} server"))
        await expect(row).to_contain_text(re.compile(r"\d+(\.\d+)? (ms|s)$"))
    # The steps that the server measured.
    await expect(times.get_by_role("row", name=re.compile("^decode"))).not_to_have_count(0)
