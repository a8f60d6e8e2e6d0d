"""The unit tests of the web page, `web/src/**/*.test.ts`, in Node.js."""

from __future__ import annotations

import pytest

from tests.examples.programs import ROOT, run_npm

pytestmark = pytest.mark.slow


def test_unit_tests_of_the_page_pass() -> None:
    # The generated code is there once the page is built.
    run_npm("test", folder=ROOT / "web")
