// Runs when the results are first shown: `element` holds them, `trigger` calls Python.
// A drag over a picture chooses a stretch; one player sounds at a time and moves a line.

const cardOf = (node) => node.closest(".card");
const seconds = (card) => Number(card.dataset.seconds);

const place = (picture, event) => {
  const box = picture.getBoundingClientRect();
  const share = (event.clientX - box.left) / box.width;
  return Math.min(1, Math.max(0, share)) * seconds(cardOf(picture));
};

// Draw a stretch on the card of that number, and on no other.
window.segueShow = (number, start, end) => {
  for (const card of element.querySelectorAll(".card")) {
    const stretch = card.querySelector(".chosen");
    const length = seconds(card);
    stretch.hidden = card.dataset.number !== String(number);
    stretch.style.left = `${(100 * Math.min(start, length)) / length}%`;
    stretch.style.width = `${(100 * Math.max(0, Math.min(end, length) - start)) / length}%`;
  }
};

// Bring what is being made into view: it stands on top of the results, maybe far above or below.
window.segueWatch = () => {
  const column = document.querySelector("#columns > :last-child").getBoundingClientRect();
  if (column.top < 0 || column.top > innerHeight / 2) {
    scrollBy({ top: column.top - 16, behavior: "smooth" });
  }
};

let drag = null;
const stretch = (event) => {
  const now = place(drag.picture, event);
  return [Math.min(drag.from, now), Math.max(drag.from, now)];
};

element.addEventListener("pointerdown", (event) => {
  const picture = event.target.closest(".picture");
  if (!picture) return;
  picture.setPointerCapture(event.pointerId);
  drag = { picture, number: Number(cardOf(picture).dataset.number), from: place(picture, event) };
});
element.addEventListener("pointermove", (event) => {
  if (drag) window.segueShow(drag.number, ...stretch(event));
});
element.addEventListener("pointerup", (event) => {
  if (!drag) return;
  const [start, end] = stretch(event);
  trigger("select", { number: drag.number, start, end });
  drag = null;
});
element.addEventListener("click", (event) => {
  if (!event.target.closest("footer button")) return;
  const card = cardOf(event.target);
  trigger("select", { number: Number(card.dataset.number), start: seconds(card), end: seconds(card) });
});
element.addEventListener("pointercancel", () => { drag = null; });

// These events do not bubble: they are caught on the way down.
element.addEventListener("play", (event) => {
  for (const other of document.querySelectorAll("audio")) {
    if (other !== event.target) other.pause();
  }
}, true);
element.addEventListener("timeupdate", (event) => {
  const card = cardOf(event.target);
  const line = card.querySelector(".playhead");
  const at = Number(event.target.dataset.start) + event.target.currentTime;
  line.hidden = event.target.currentTime === 0;
  line.style.left = `${(100 * at) / seconds(card)}%`;
}, true);
