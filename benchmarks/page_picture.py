"""A picture of the page as it opens, for the documentation.

    python benchmarks/page_picture.py docs/images/page.png

It starts ``nextscale demo`` and looks at it with Playwright and the Chromium on the path.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

SIZE = {"width": 1280, "height": 1480}


def take(address: str, output: Path) -> None:
    """Open the page and save what is to be seen once it has drawn."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(address)
        page.wait_for_selector("#ns-film img", timeout=120_000)
        page.wait_for_timeout(500)  # until nothing moves
        page.screenshot(path=output)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="the PNG to write")
    output = parser.parse_args().output
    command = [sys.executable, "-m", "nextscale", "demo", "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            lines = iter(server.stdout or ())
            found = next((a for line in lines if (a := re.search(r"http://\S+", line))), None)
            if found is None:
                sys.exit("the page did not start")
            take(found[0], output)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
