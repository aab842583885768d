const items = JSON.parse(document.getElementById("items").textContent);
const element = (name, text, ...inside) => {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...inside);
  return made;
};

// Filters: a picture stays when it fits all three; a real one has no writer and nothing to agree with.
const filters = document.getElementById("filters"), tiles = [...document.querySelectorAll("#gallery .tile")];
function filter() {
  const { label, writer, agrees } = Object.fromEntries(new FormData(filters));
  let shown = 0;
  for (const tile of tiles) {
    const item = items[tile.dataset.item], made = item.kind === "generated";
    tile.hidden = Boolean(label && item.label !== label || made && (writer && item.writer !== writer || agrees && String(item.agrees) !== agrees));
    shown += !tile.hidden && made;
  }
  for (const group of document.querySelectorAll("#gallery .class")) group.hidden = Boolean(label) && group.dataset.label !== label;
  for (const side of document.querySelectorAll("#gallery [data-side=generated]"))
    side.querySelector(".none").hidden = Boolean(side.querySelector(".tile:not([hidden])"));
  filters.querySelector("output").textContent = `${shown} of ${filters.dataset.all} generated images`;
}
filters.addEventListener("input", filter);
filters.addEventListener("reset", () => setTimeout(filter));   // after the form has its first values again
filter();

// One picture, large, with what is known of it; arrow keys walk through those of its section.
const viewer = document.getElementById("viewer");
let opened, row = [];
function show(tile) {
  opened = tile;
  const item = items[tile.dataset.item], picture = document.getElementById("picture");
  picture.src = item.picture;
  picture.alt = `${item.kind}: ${item.title}`;
  document.getElementById("title").textContent = item.title;
  document.getElementById("facts").replaceChildren(...Object.entries({ kind: item.kind, class: item.label, ...item.facts })
    .flatMap(([name, value]) => [element("dt", name), element("dd", value || "none")]));
  const sources = document.getElementById("sources"), near = document.getElementById("near");
  sources.hidden = !item.passages;
  sources.querySelector("ul").replaceChildren(...(item.passages?.length ? item.passages : ["none: written without a passage"])
    .map(text => element("li", text)));
  near.hidden = !item.nearest;
  if (item.nearest) {
    near.querySelector("img").src = item.nearest.picture;
    near.querySelector("img").alt = `training tile ${item.nearest.file}`;
    near.querySelector("div").replaceChildren(element("p", "", element("strong", "Nearest training tile")), element("p", item.nearest.file),
      element("p", `distance ${item.nearest.distance}, in features of the scene classifier`), element("p", item.nearest.closer));
  }
  for (const step of [-1, 1]) viewer.querySelector(`[data-step="${step}"]`).disabled = !row[row.indexOf(tile) + step];
}
function walk(step) {
  const next = row[row.indexOf(opened) + step];
  if (next) show(next);
}
for (const tile of document.querySelectorAll(".tile")) tile.addEventListener("click", () => {
  row = [...tile.closest("section").querySelectorAll(".tile:not([hidden])")].filter(other => other.checkVisibility());
  show(tile);
  viewer.showModal();
  viewer.scrollTop = 0;
});
for (const button of viewer.querySelectorAll("[data-step]")) button.addEventListener("click", () => walk(Number(button.dataset.step)));
viewer.addEventListener("keydown", event => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step) { event.preventDefault(); walk(step); }
});
viewer.addEventListener("click", event => { if (event.target === viewer) viewer.close(); });
viewer.addEventListener("close", () => opened.focus());

// run.js: what belongs to the machine and the moment.
const time = s => s === null ? "" : s < 90 ? `${s < 10 ? s.toFixed(1) : Math.round(s)} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`;
const size = b => b === null ? "" : b < 1e6 ? `${Math.max(1, Math.round(b / 1e3))} kB` : b < 1e9 ? `${(b / 1e6).toFixed(b < 1e7 ? 1 : 0)} MB` : `${(b / 1e9).toFixed(1)} GB`;
document.getElementById("stages").innerHTML = run.flow;
for (const text of document.querySelectorAll("[data-stage]")) {
  const { seconds, bytes } = run.stages[text.dataset.stage];
  text.textContent = [time(seconds), size(bytes)].filter(Boolean).join(" · ") || "not run here";
}
const sum = name => Object.values(run.stages).reduce((total, stage) => total + (stage[name] ?? 0), 0);
document.getElementById("total").textContent =
  `Together: ${size(sum("bytes"))}` + (sum("seconds") ? ` and ${time(sum("seconds"))}.` : "; no stage was run here, so no times are known.");
document.getElementById("machine").replaceChildren(...Object.entries({
  commit: run.commit ? run.commit + (run.changed ? ", with uncommitted changes of code or params" : "") : "not in a git repository",
  device: run.device, system: run.system, versions: Object.entries(run.versions).map(pair => pair.join(" ")).join(", "),
}).flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
document.getElementById("params").textContent = run.params;
