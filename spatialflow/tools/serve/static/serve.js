// A picture is dropped, pasted or chosen, and sent to the server.

const MAX_BYTES = 20e6;
const MAX_TRIES = 5;
let asked = null; // AbortController of the request that is waited for

function showStatus(text, isError = false) {
  byId("status").textContent = text;
  byId("status").hidden = !text;
  byId("status").classList.toggle("error", isError);
}

const authorization = () =>
  byId("token").value ? { Authorization: `Bearer ${byId("token").value}` } : {};

/** The picture's answer; while the server is busy, ask again when it says so. */
async function ask(file, signal) {
  for (let tries = 1; ; tries++) {
    const options = { method: "POST", body: file, headers: authorization(), signal };
    const response = await fetch("predict", options);
    if (response.ok) return response.json();
    if (response.status === 401) byId("token-label").hidden = false;
    if (response.status !== 503 || tries === MAX_TRIES) {
      const { error } = await response.json().catch(() => ({}));
      throw new Error(error ?? `The server answered with status ${response.status}.`);
    }
    const seconds = Number(response.headers.get("Retry-After")) || 1;
    showStatus(`The server is busy; asking again in ${seconds} s.`);
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
    signal.throwIfAborted();
  }
}

/** Show a picture as it is, before its answer. */
async function showPhoto(file) {
  const photo = byId("photo");
  URL.revokeObjectURL(photo.src);
  photo.src = URL.createObjectURL(file);
  await photo.decode();
  photo.alt = file.name || "pasted picture";
  const { naturalWidth: width, naturalHeight: height } = photo;
  // As large as the window has room for; small pictures are enlarged.
  byId("stack").style.width = `min(100%, ${(68 * width) / height}vh)`;
  byId("stack").classList.toggle("enlarged", Math.max(width, height) < 500);
  byId("stack").hidden = false;
  byId("invitation").hidden = true;
  byId("drop").classList.remove("empty");
}

async function open(file) {
  asked?.abort();
  const own = (asked = new AbortController());
  forgetAnswer();
  byId("panel").hidden = true;
  shown.name = (file.name || "picture").replace(/\.[^.]*$/, "");
  try {
    if (file.size > MAX_BYTES) throw new Error("The picture has more than 20 MB.");
    showStatus("Segmenting …");
    byId("stack").classList.add("waiting");
    // What the browser cannot show, the server may still know better.
    await showPhoto(file).catch(() => (byId("stack").hidden = true));
    const answer = await ask(file, own.signal);
    showStatus("");
    showAnswer(answer);
    showPanel();
  } catch (error) {
    if (own.signal.aborted) return;
    const offline = error instanceof TypeError;
    showStatus(offline ? "The server does not answer." : error.message, true);
  } finally {
    if (own === asked) byId("stack").classList.remove("waiting");
  }
}

function openFirst(files) {
  const file = [...files].find((f) => f.type.startsWith("image/")) ?? files[0];
  if (file) open(file);
}

async function showModel() {
  const response = await fetch("model", { headers: authorization() });
  byId("token-label").hidden = response.status !== 401;
  if (!response.ok) return;
  const { name, classes } = await response.json();
  byId("model").textContent = `${name} · ${classes.length} classes`;
  byId("model").title = classes.map((c) => c.name).join(", ");
}

const over = (on) => byId("drop").classList.toggle("over", on);
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  over(true);
});
document.addEventListener("dragleave", (event) => event.relatedTarget ?? over(false));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  over(false);
  openFirst(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) openFirst(event.clipboardData.files);
});
byId("drop").addEventListener("click", (event) => {
  if (event.currentTarget.classList.contains("empty")) byId("file").click();
});
byId("file").addEventListener("change", (event) => {
  openFirst(event.target.files);
  event.target.value = ""; // the same file can be chosen again
});
byId("token").addEventListener("change", showModel);
showModel();
