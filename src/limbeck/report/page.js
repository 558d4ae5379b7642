/* Draws the charts in the colours of the theme, and again when it changes. */
(() => {
  "use strict";
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const calm = { displayModeBar: false, responsive: true, doubleClick: false };
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);

  const colour = (value) => {
    probe.style.color = value;
    return getComputedStyle(probe).color;
  };
  /* Only below a key that speaks of colour: a class may be called "var(--ink)". */
  const resolved = (node, tinted = false) => {
    if (typeof node === "string") return tinted && node.startsWith("var(") ? colour(node) : node;
    if (Array.isArray(node)) return node.map((item) => resolved(item, tinted));
    if (node === null || typeof node !== "object") return node;
    return Object.fromEntries(
      Object.entries(node).map(([key, value]) => [key, resolved(value, tinted || /color/.test(key))]),
    );
  };

  const charts = [...document.querySelectorAll(".chart")].map((place) => {
    const source = JSON.parse(place.querySelector("script").textContent);
    place.replaceChildren();
    return { place, source };
  });
  const draw = () => {
    const family = getComputedStyle(document.body).fontFamily;
    for (const { place, source } of charts) {
      const { data, layout } = resolved(source);
      layout.font = { family, size: 12, color: colour("var(--ink)") };
      layout.height = place.clientHeight;
      layout.autosize = true;
      Plotly.react(place, data, layout, calm);
    }
    root.dataset.drawn = root.dataset.theme || "auto";
  };

  document.getElementById("theme").addEventListener("click", () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    draw();
  });
  dark.addEventListener("change", () => draw());

  /* On paper: light, the tables and recipes unfolded, charts as wide as the sheet allows. */
  let before;
  addEventListener("beforeprint", () => {
    const folded = [...document.querySelectorAll("section > details:not([open])")];
    before = { theme: root.dataset.theme, folded };
    root.dataset.theme = "light";
    for (const item of folded) item.open = true;
    draw();
  });
  addEventListener("afterprint", () => {
    if (before.theme) root.dataset.theme = before.theme;
    else delete root.dataset.theme;
    for (const item of before.folded) item.open = false;
    draw();
  });

  draw();
})();
