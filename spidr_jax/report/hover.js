// Under the pointer: a cursor, and each line's value at its nearest step, in words below the chart.
for (const svg of document.querySelectorAll("svg[data-hover]")) {
  const { x: [low, high], box: [left, right, top, bottom], lines } = JSON.parse(svg.dataset.hover);
  const cursor = svg.querySelector(".cursor");
  const readout = svg.parentElement.querySelector(".readout");
  svg.addEventListener("pointermove", (event) => {
    const frame = svg.getBoundingClientRect();
    const place = ((event.clientX - frame.left) / frame.width) * svg.viewBox.baseVal.width;
    const at = low + ((place - left) / (right - left)) * (high - low);
    const found = [];
    let nearest = null;
    for (const [name, xs, ys, lows, highs] of lines) {
      if (!xs.length) continue;
      let best = 0;
      for (let i = 1; i < xs.length; i++) {
        if (Math.abs(xs[i] - at) < Math.abs(xs[best] - at)) best = i;
      }
      if (nearest === null || Math.abs(xs[best] - at) < Math.abs(nearest - at)) nearest = xs[best];
      const range = lows && lows[best] !== null ? ` (${lows[best]} to ${highs[best]})` : "";
      found.push(`${name} ${ys[best] === null ? "gap" : ys[best]}${range} at ${xs[best]}`);
    }
    const line = left + ((nearest - low) / (high - low)) * (right - left);
    cursor.setAttribute("d", `M${line} ${top}V${bottom}`);
    readout.textContent = found.join("; ");
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("d", "");
    readout.textContent = "";
  });
}
