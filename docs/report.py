"""The picture of a report for a page: Chromium's screenshot of an HTML file, in two columns.

    python docs/report.py report.html docs/report.webp
"""
import pathlib
import subprocess
import sys
import tempfile

from PIL import Image

WIDTH, HEIGHT = 1100, 5200            # pixels of the browser's window
SCALE = 0.7


def main(report, picture):
    """Write the picture; subprocess.CalledProcessError if Chromium ends with an error."""
    with tempfile.TemporaryDirectory() as folder:
        shot = pathlib.Path(folder, "shot.png")
        subprocess.run(["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                        f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}", pathlib.Path(report).resolve().as_uri()],
                       check=True, capture_output=True)
        page = Image.open(shot).convert("RGB")
    columns = Image.new("RGB", (2 * WIDTH, HEIGHT // 2))
    for column in range(2):
        top = column * HEIGHT // 2
        columns.paste(page.crop((0, top, WIDTH, top + HEIGHT // 2)), (column * WIDTH, 0))
    columns.thumbnail((int(2 * WIDTH * SCALE), HEIGHT), Image.Resampling.LANCZOS)
    columns.save(picture, quality=80, method=6)


if __name__ == "__main__":
    main(*sys.argv[1:])
