// The masks at a background score. Layers are pictures of (class, levels below its score, 0): exact.
const OPACITY = 0.6;
const overall = document.querySelector("#level"), withPhoto = document.querySelector("#photo");
const layers = new Map(); // canvas -> what its layers and its photograph hold

function pixels(image) {
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height).data;
}

async function load(canvas) {
  const image = new Image();
  image.src = canvas.dataset.layers;
  const photo = canvas.closest("article").querySelector(".photo");
  await Promise.all([image.decode(), photo.decode()]);
  layers.set(canvas, { label: pixels(image), photo: pixels(photo) });
}

// The label map at a level, one number a pixel: what make_pseudo_labels.py --no-crf writes.
function labelMap(canvas, level) {
  const { label } = layers.get(canvas), map = new Uint8Array(label.length / 4);
  for (let i = 0; i < map.length; i++) map[i] = label[4 * i + 1] > level ? label[4 * i] : 0;
  return map;
}

function draw(canvas, level) {
  if (!layers.has(canvas)) return;
  const { photo } = layers.get(canvas), map = labelMap(canvas, level);
  const context = canvas.getContext("2d"), drawn = context.createImageData(canvas.width, canvas.height);
  const opacity = withPhoto.checked ? OPACITY : 1;
  let above = 0;
  for (let i = 0; i < map.length; i++) {
    above += map[i] > 0;
    for (let c = 0; c < 3; c++) {
      const below = photo[4 * i + c], over = palette[map[i]][c];
      drawn.data[4 * i + c] = map[i] || opacity === 1 ? (1 - opacity) * below + opacity * over : below;
    }
    drawn.data[4 * i + 3] = 255;
  }
  context.putImageData(drawn, 0, 0);
  canvas.parentNode.querySelector(".part").textContent = percent(above / map.length);
}

const percent = (share) => `${(100 * share).toFixed(1)}%`;
const number = (level) => (level / 100).toFixed(2);

function drawAll(article) {
  const own = article.querySelector(".own input");
  article.querySelector(".own output").textContent = number(own.value);
  article.querySelectorAll("canvas").forEach((canvas) => draw(canvas, Number(own.value)));
}

function moved() {
  const level = Number(overall.value);
  document.querySelector(".slider output").textContent = number(level);
  document.querySelectorAll(".share").forEach((place) => {
    const { shares, auto, holds } = columns[place.dataset.column];
    const hint = auto === null ? "" : `; --threshold auto: ${auto.toFixed(2)} on average`;
    const whose = holds === "scores" ? "above it" : "labelled, whatever the slider says";
    place.textContent = `${percent(shares[level])} of all pixels ${whose}${hint}`;
  });
  document.querySelectorAll(".command").forEach((place) => {
    const { command, out } = columns[place.dataset.column];
    place.textContent = `${command} ${number(level)} --out ${out}${String(level).padStart(2, "0")}`;
  });
  document.querySelectorAll("article").forEach((article) => {
    article.querySelector(".own input").value = level;
    if (article.dataset.seen) drawAll(article);
  });
  history.replaceState(null, "", `#${number(level)}`);
  document.querySelectorAll(".pages a").forEach((link) => {
    link.href = `${link.href.split("#")[0]}#${number(level)}`;
  });
}

// A picture is decoded when it comes into view.
const watch = new IntersectionObserver((entries) => {
  entries.filter((entry) => entry.isIntersecting).forEach(async ({ target }) => {
    watch.unobserve(target);
    await Promise.all([...target.querySelectorAll("canvas")].map(load));
    target.dataset.seen = "1";
    drawAll(target);
  });
}, { rootMargin: "600px" });

overall.addEventListener("input", moved);
withPhoto.addEventListener("input", () => {
  document.querySelectorAll("article[data-seen]").forEach(drawAll);
});
document.querySelectorAll("[data-level]").forEach((button) => {
  button.addEventListener("click", () => { overall.value = button.dataset.level; moved(); });
});
document.querySelectorAll("article").forEach((article) => {
  article.querySelector(".own input").addEventListener("input", () => drawAll(article));
  watch.observe(article);
});
const asked = Number(location.hash.slice(1));
if (location.hash && asked >= 0 && asked <= 1) overall.value = Math.round(100 * asked);
moved();
