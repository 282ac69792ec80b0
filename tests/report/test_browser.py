"""The page in headless Chromium, wide and narrow, light and dark; skipped where Chromium is not installed."""

import html
import json
import re
import shutil
import subprocess

import pytest
import reported

from gr_jax.report.__main__ import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# Run in the page: what is wider than the window, which pictures are not visible.
_CHECK = """
<script>
addEventListener("load", () => setTimeout(() => {
  const seen = element => { const box = element.getBoundingClientRect(); return box.width && !element.closest("thead")
    && (box.right > innerWidth + 1 || box.left < -1); };
  const found = document.createElement("pre");
  found.textContent = JSON.stringify({
    width: innerWidth, scroll: document.documentElement.scrollWidth, images: document.images.length,
    broken: [...document.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.alt),
    wide: [...document.querySelectorAll("body *")].filter(seen).map(element => element.tagName),
    dark: matchMedia("(prefers-color-scheme: dark)").matches});
  document.body.append(found);
}, 300));
</script>
"""
# A window cannot be as narrow as a telephone, a frame can.
_FRAME = """<!doctype html><meta name="color-scheme" content="light dark">
<iframe src="checked.html" style="border:0;width:400px;height:20000px"></iframe>
<script>
addEventListener("load", () => setTimeout(() => document.body.append(
  document.querySelector("iframe").contentDocument.querySelector("body > pre")), 1500));
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_nothing_overflows_and_every_picture_is_visible(tmp_path):
  folders = [reported.run(tmp_path / name, method=method, seed=seed) for name, method, seed in (
      ("a", "gr", 0), ("b", "gr", 1), ("c", "lwf", 0))]
  page, _ = report([*folders, reported.run(tmp_path / "cut", done=1, digest="b" * 64)], tmp_path / "report.html")
  text = page.read_text().replace("<details>", "<details open>").replace("</body>", f"{_CHECK}</body>")
  (tmp_path / "checked.html").write_text(text)
  (tmp_path / "frame.html").write_text(_FRAME)
  for dark in (False, True):
    for width, name in ((1280, "checked.html"), (400, "frame.html")):
      scheme = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else [
          "--blink-settings=preferredColorScheme=1"]
      done = subprocess.run(
          [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
           "--hide-scrollbars", "--enable-logging=stderr", "--allow-file-access-from-files",
           "--virtual-time-budget=4000", f"--user-data-dir={tmp_path}/{width}{dark}", *scheme,
           "--window-size=1280,900", "--dump-dom", (tmp_path / name).as_uri()],
          capture_output=True, text=True, timeout=300, check=True)
      layout = json.loads(html.unescape(re.findall(r"<pre>({.*?})</pre>", done.stdout)[-1]))
      assert layout["width"] == layout["scroll"] == width and layout["dark"] is dark
      assert layout["images"] > 30 and layout["broken"] == [] and layout["wide"] == []
      assert "CONSOLE" not in done.stderr
