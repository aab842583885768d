const items = JSON.parse(document.getElementById("items").textContent);

function element(name, text, ...children) {
  const node = document.createElement(name);
  if (text) node.textContent = text;
  node.append(...children);
  return node;
}

// Filters: an image is shown when it matches all three. Of real tiles only the class counts.
const filters = document.getElementById("filters");
const galleryTiles = [...document.querySelectorAll("#gallery .tile")];

function matches(item, { label, writer, agrees }) {
  if (label && item.label !== label) return false;
  if (item.kind !== "generated") return true;
  if (writer && item.writer !== writer) return false;
  return !agrees || String(item.agrees) === agrees;
}

function applyFilters() {
  const chosen = Object.fromEntries(new FormData(filters));
  let shown = 0;
  for (const tile of galleryTiles) {
    const item = items[tile.dataset.item];
    tile.hidden = !matches(item, chosen);
    if (!tile.hidden && item.kind === "generated") shown += 1;
  }
  for (const group of document.querySelectorAll("#gallery .class"))
    group.hidden = Boolean(chosen.label) && group.dataset.label !== chosen.label;
  for (const side of document.querySelectorAll("#gallery [data-side=generated]"))
    side.querySelector(".none").hidden = Boolean(side.querySelector(".tile:not([hidden])"));
  filters.querySelector("output").textContent =
    `${shown} of ${filters.dataset.all} generated images`;
}

filters.addEventListener("input", applyFilters);
// The event comes before the form has its first values again.
filters.addEventListener("reset", () => setTimeout(applyFilters));
applyFilters();

// The viewer: one picture in full size with its details; arrow keys go through its section.
const viewer = document.getElementById("viewer");
let current;         // the tile that is shown
let sectionTiles = [];

function show(tile) {
  current = tile;
  const item = items[tile.dataset.item];
  const picture = document.getElementById("picture");
  picture.src = item.picture;
  picture.alt = `${item.kind}: ${item.title}`;
  document.getElementById("title").textContent = item.title;
  const facts = { kind: item.kind, class: item.label, ...item.facts };
  document.getElementById("facts").replaceChildren(...definitions(facts));
  showPassages(item.passages);
  showNearest(item.nearest);
  for (const step of [-1, 1])
    viewer.querySelector(`[data-step="${step}"]`).disabled = !neighbor(step);
}

function definitions(facts) {
  return Object.entries(facts)
    .flatMap(([name, value]) => [element("dt", name), element("dd", value || "none")]);
}

function showPassages(passages) {
  const sources = document.getElementById("sources");
  sources.hidden = !passages;
  const texts = passages?.length ? passages : ["none: written without a passage"];
  sources.querySelector("ul").replaceChildren(...texts.map(text => element("li", text)));
}

function showNearest(nearest) {
  const near = document.getElementById("near");
  near.hidden = !nearest;
  if (!nearest) return;
  near.querySelector("img").src = nearest.picture;
  near.querySelector("img").alt = `training tile ${nearest.file}`;
  near.querySelector("div").replaceChildren(
    element("p", "", element("strong", "Nearest training tile")),
    element("p", nearest.file),
    element("p", `distance ${nearest.distance}, in features of the scene classifier`),
    element("p", nearest.closer),
  );
}

function neighbor(step) {
  return sectionTiles[sectionTiles.indexOf(current) + step];
}

function move(step) {
  const tile = neighbor(step);
  if (tile) show(tile);
}

function openViewer(tile) {
  sectionTiles = [...tile.closest("section").querySelectorAll(".tile:not([hidden])")]
    .filter(other => other.checkVisibility());
  show(tile);
  viewer.showModal();
  viewer.scrollTop = 0;
}

for (const tile of document.querySelectorAll(".tile"))
  tile.addEventListener("click", () => openViewer(tile));
for (const button of viewer.querySelectorAll("[data-step]"))
  button.addEventListener("click", () => move(Number(button.dataset.step)));
viewer.addEventListener("keydown", event => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  move(step);
});
viewer.addEventListener("click", event => {
  if (event.target === viewer) viewer.close();   // a click beside it
});
viewer.addEventListener("close", () => current.focus());

// ../run.js: stages with times and sizes, commit, machine, params. It is no part of the report: it may
// be missing, or be of another run.
function formatTime(seconds) {
  if (seconds === null) return "-";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function formatSize(bytes) {
  if (bytes === null) return "-";
  if (bytes < 1e6) return `${Math.max(1, Math.round(bytes / 1e3))} kB`;
  if (bytes < 1e9) return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
  return `${(bytes / 1e9).toFixed(1)} GB`;
}

function stageRow(stage) {
  const cells = {
    stage: stage.items > 1 ? `${stage.name}\u00a0×\u00a0${stage.items}` : stage.name,
    reads: stage.reads.join(", ") || "-",
    time: formatTime(stage.seconds),
    size: formatSize(stage.bytes),
  };
  const row = element("tr");
  row.dataset.stage = stage.name;
  for (const [title, text] of Object.entries(cells)) {
    const cell = element("td", text);
    if (title !== "stage") cell.dataset.title = title;
    if (title === "time" || title === "size") cell.className = "number";
    row.append(cell);
  }
  return row;
}

function showRun() {
  const sum = name => run.stages.reduce((total, stage) => total + (stage[name] ?? 0), 0);
  document.getElementById("stage-rows").replaceChildren(...run.stages.map(stageRow));
  document.getElementById("total").textContent = sum("seconds")
    ? `In all ${formatTime(sum("seconds"))} and ${formatSize(sum("bytes"))}.`
    : `In all ${formatSize(sum("bytes"))}; no stage ran on this machine, so no times are known.`;

  let commit = "not in a git repository";
  if (run.commit) commit = run.commit;
  if (run.changed) commit += ", with uncommitted changes of code or params";
  document.getElementById("machine").replaceChildren(...definitions({
    commit,
    device: run.device,
    system: run.system,
    versions: Object.entries(run.versions).map(pair => pair.join(" ")).join(", "),
  }));
  document.getElementById("params").textContent = run.params;
  for (const part of document.querySelectorAll(".with-run")) part.hidden = false;
  for (const part of document.querySelectorAll(".without-run")) part.hidden = true;
}

const runScript = element("script");
runScript.src = "../run.js";
runScript.addEventListener("load", () => {
  if (run.report === reportId) showRun();
});
document.body.append(runScript);
