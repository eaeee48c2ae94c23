"""A browser shows the report: at any width, in light and dark, nothing cut or covered."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import written_runs

from spidr_jax.eval import quality
from spidr_jax.report.page import page
from spidr_jax.report.probe import Probe, Utterance
from spidr_jax.report.runs import read_runs

BROWSERS = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
BROWSER = next(filter(None, BROWSERS), None)
MEASURE = """<script>
addEventListener("load", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
  const out = { width: innerWidth, page: document.documentElement.scrollWidth, cut: [], over: [] };
  out.dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const colour = (element, name) => getComputedStyle(element)[name];
  out.paper = colour(document.body, "backgroundColor");
  out.ink = ["p", "td", "svg text", "summary"].map((s) => {
    const e = document.querySelector(s);
    return colour(e, s === "svg text" ? "fill" : "color");
  });
  const lines = [...document.querySelectorAll("figure g .l")];
  out.lines = [...new Set(lines.map((e) => colour(e, "stroke")))];
  for (const svg of document.querySelectorAll("svg[role=img]")) {
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].map((t) => [t, t.getBoundingClientRect()]);
    for (const [t, b] of texts) {
      if (b.left < frame.left - 1 || b.right > frame.right + 1 || b.bottom > frame.bottom + 1
          || b.top < frame.top - 1) out.cut.push(t.textContent);
    }
    if (!svg.dataset.hover) continue;
    const axis = texts.filter(([t]) => !t.classList.contains("end"));
    axis.forEach(([t, a], i) => axis.slice(i + 1).forEach(([u, b]) => {
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 1 && high > 4) out.over.push(`${t.textContent} | ${u.textContent}`);
    }));
  }
  const svg = document.querySelector("svg[data-hover]");
  const frame = svg.getBoundingClientRect();
  const data = JSON.parse(svg.dataset.hover);
  const x = frame.left + (data.box[1] / 340) * frame.width;
  svg.dispatchEvent(new PointerEvent("pointermove", { clientX: x, clientY: frame.top + 50 }));
  out.readout = svg.parentElement.querySelector(".readout").textContent;
  parent.postMessage(JSON.stringify(out), "*");
});
</script>"""
# A window is 500 wide at least, a frame in it may be narrower.
FRAME = """<!DOCTYPE html><meta name="color-scheme" content="light dark">
<iframe style="border: 0" width="WIDTH" height="1500" src="measured.html"></iframe><script>
addEventListener("message", (event) => {
  const pre = document.createElement("pre");
  pre.id = "measured";
  pre.textContent = event.data;
  document.body.append(pre);
});
</script>"""


def look(page: Path, width: int, dark: bool, *what: str) -> str:
    """Start a browser on a page; give its output."""
    assert BROWSER
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={page.parent / 'profile'}", f"--window-size={width},1600"]
    if dark:
        command += ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"]
    done = subprocess.run(
        [*command, *what, page.as_uri()], check=True, timeout=120, capture_output=True, text=True
    )
    return done.stdout


def contrast(first: str, second: str) -> float:
    """Of two colours "rgb(r, g, b)", as WCAG 2 defines it: 1 to 21."""

    def luminance(text: str) -> float:
        share = np.array([int(part) for part in re.findall(r"\d+", text)[:3]]) / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all that there can be: three runs of different lengths, and units."""
    folder = tmp_path_factory.mktemp("shown")
    for i, (lines, steps) in enumerate([(20, 60_000), (2_000, 400_000), (500, 300_000)]):
        run = written_runs.write(folder / f"run {i}", lines, steps, seed=i)
        (run / "evaluate.json").write_text(json.dumps({"step": steps, "results": _results(i)}))
    html = page(read_runs(sorted(folder.iterdir())), [_units(), "", ""])
    (folder / "report.html").write_text(html)
    (folder / "measured.html").write_text(html.replace("</body>", f"{MEASURE}</body>"))
    return folder


def _results(run: int) -> list[dict[str, object]]:
    kinds = ("features", "codebooks", "units")
    layers = [(k, kind) for k in range(1, 13) for kind in kinds]
    numbers = [{"abx_within": 0.03 + 0.01 * run + 0.001 * k} for k, _ in layers]
    found = [{"layer": k, "kind": n} | m for (k, n), m in zip(layers, numbers, strict=True)]
    return [*found, {"layer": "MFCC", "kind": "features", "abx_within": 0.1}]


def _units() -> Probe:
    """40 phones and 250 units that follow them, now and then another."""
    random = np.random.default_rng(0)
    names = [f"P{i}" for i in range(39)] + ["SIL"]
    spoken = np.repeat(random.integers(40, size=4_000), random.integers(2, 8, 4_000))
    units = np.where(
        random.random(len(spoken)) < 0.8, spoken * 6, random.integers(250, size=len(spoken))
    )
    phones = np.repeat(np.array(names)[spoken], 2)
    pairs = {"u": (phones, units + random.integers(6, size=len(units)))}
    measured = quality.units_quality(pairs, 256)
    wave = 0.2 * random.standard_normal(64_000)
    return Probe(
        "dev",
        used=40,
        total=40,
        step=60_000,
        layer=6,
        measured=dict.fromkeys(range(5, 13), measured),
        matrix=quality.proba_phone_code(*quality.count_matrix(pairs, 256)),
        utterances=[Utterance("an utterance", wave, phones[:400], pairs["u"][1][:200])],
    )


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium")
@pytest.mark.parametrize(
    ("width", "dark"), [(1400, False), (1400, True), (400, False), (400, True)]
)
def test_it_is_readable_in_a_browser(shown: Path, width: int, dark: bool) -> None:
    frame = shown / f"frame-{width}.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)))
    dom = look(frame, 1500, dark, "--dump-dom")
    text = re.search(r'<pre id="measured">(.*?)</pre>', dom, re.DOTALL)
    assert text
    found = json.loads(unescape(text[1]))
    assert (found["width"], found["dark"]) == (width, dark)
    assert found["page"] <= width  # the page itself does not scroll sideways
    assert found["cut"] == []
    assert found["over"] == []
    assert all(contrast(ink, found["paper"]) >= 4.5 for ink in found["ink"])
    assert len(found["lines"]) == 4  # a colour for each run and the published one
    assert all(contrast(line, found["paper"]) >= 3 for line in found["lines"])
    assert (contrast(found["paper"], "rgb(255, 255, 255)") > 15) == dark
    assert re.match(
        r"A [\d.]+ at 60000; B [\d.]+ \([\d.]+ to [\d.]+\) at 39\d{4}", found["readout"]
    )


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium")
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (400, True)])
def test_it_can_be_photographed(shown: Path, width: int, dark: bool) -> None:
    picture = shown / f"{width}.png"
    look(shown / "report.html", width, dark, f"--screenshot={picture}")
    content = picture.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(content[16:20], "big") == width
    assert len(content) > 40_000  # of a blank page of that size: 10,000
