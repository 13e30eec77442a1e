// Search and order of the gallery's cards. Each card carries its place, the model's score and its gain.
const list = document.querySelector("main");
const cards = [...list.children];
const search = document.querySelector("#search");
const order = document.querySelector("#order");
const count = document.querySelector("#count");

const value = (card, key) => Number(card.dataset[key]);
const orders = {
  place: (a, b) => value(a, "place") - value(b, "place"),
  best: (a, b) => value(b, "score") - value(a, "score"),
  worst: (a, b) => value(a, "score") - value(b, "score"),
  improved: (a, b) => value(b, "gain") - value(a, "gain"),
  worsened: (a, b) => value(a, "gain") - value(b, "gain"),
};

function show() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const card of cards.sort(orders[order.value])) {
    const text = card.textContent.toLowerCase();
    card.hidden = !words.every((word) => text.includes(word));
    shown += !card.hidden;
    list.append(card);
  }
  count.textContent = `${shown} of ${cards.length}`;
}

search.addEventListener("input", show);
order.addEventListener("change", show);
document.querySelector("#tools").hidden = false;
show();
