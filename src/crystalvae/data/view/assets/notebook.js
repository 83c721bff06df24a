"use strict";
(async () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const place = document.getElementById("crystals");

  function element(parent, tag, name = "", text = "") {
    const made = document.createElement(tag);
    made.className = name;
    made.textContent = text;
    parent.append(made);
    return made;
  }

  async function load(packed) {
    const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
    const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    element(document.head, "script", "", await new Response(unpacked).text());
  }

  await load(document.getElementById("library").textContent);
  const shown = element(place, "div", "shown");
  const title = element(shown, "p");
  const frame = element(shown, "div", "viewer");
  const obstacle = element(shown, "p");
  const viewer = CrystalView.newViewer(frame);
  window.crystalViewer = viewer;

  function show(tile) {
    title.textContent = tile.title;
    frame.hidden = !(viewer && tile.scene);
    obstacle.textContent = !frame.hidden ? "" : tile.scene ? "This browser cannot draw in three dimensions (no WebGL)." : `Not drawn: ${tile.obstacle}.`;
    if (!frame.hidden) {
      viewer.resize();
      CrystalView.draw(viewer, tile.scene, data);
    }
  }

  if (data.tiles.length > 1) {
    place.className = "many";
    const tiles = element(place, "div", "tiles");
    data.tiles.forEach((tile) => {
      show(tile);
      const button = element(tiles, "button");
      if (viewer && tile.scene) element(button, "img").src = viewer.pngURI();
      element(button, "span", "", tile.title);
      button.addEventListener("click", () => {
        tiles.querySelectorAll("button").forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
        show(tile);
      });
    });
    tiles.querySelector("button").click();
  } else {
    show(data.tiles[0]);
  }
  document.documentElement.dataset.ready = "true";
})();
