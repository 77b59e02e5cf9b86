// Downloads at the picture's own size: as it is drawn, its ids, its segments.

const PIXELS_PER_BORDER = 1200; // as spatialflow.visualization.draw has it

function save(blob, ending) {
  const link = el("a", { href: URL.createObjectURL(blob), download: `${shown.name}${ending}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function canvasOfPicture() {
  const { width, height } = shown.answer;
  return el("canvas", { width, height });
}

function saveCanvas(canvas, ending) {
  canvas.toBlob((blob) => {
    if (blob) save(blob, ending);
    else showStatus("This browser cannot make a picture of this size.", true);
  });
}

/** The picture as it is on the page: classes, opacity; without the segment pointed out. */
function downloadDrawn() {
  const canvas = canvasOfPicture();
  const overlay = canvasOfPicture();
  const map = mapOfMasks(shown.answer, overlay.width, overlay.height);
  const opacity = fraction("opacity");
  const thickness = Math.max(1, Math.round(Math.max(canvas.width, canvas.height) / PIXELS_PER_BORDER));
  paintMap(overlay, map, shown.answer.segments.map((s) => s.color), {
    alpha: (i) => (isHidden(i) ? 0 : Math.round(255 * opacity)),
    lines: opacity > 0 ? 255 : 0,
    thickness,
  });
  const context = canvas.getContext("2d");
  context.drawImage(byId("photo"), 0, 0, canvas.width, canvas.height);
  context.drawImage(overlay, 0, 0);
  saveCanvas(canvas, "_panoptic.png");
}

/** Ids in COCO's coding: id = R + 256 G + 65536 B. */
function downloadIds() {
  const canvas = canvasOfPicture();
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  const packed = new Uint32Array(pixels.data.buffer);
  const ids = Uint32Array.from([0, ...shown.answer.segments.map((s) => s.id)], (id) => (0xff000000 | id) >>> 0);
  mapOfMasks(shown.answer, canvas.width, canvas.height).forEach((value, i) => (packed[i] = ids[value]));
  context.putImageData(pixels, 0, 0);
  saveCanvas(canvas, "_ids.png");
}

byId("download-drawn").addEventListener("click", downloadDrawn);
byId("download-ids").addEventListener("click", downloadIds);
byId("download-json").addEventListener("click", () =>
  save(new Blob([JSON.stringify(shown.answer)], { type: "application/json" }), "_segments.json"),
);
