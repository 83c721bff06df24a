"use strict";
(() => {
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const viewers = [];
  window.crystalViewers = viewers;

  const EDGES = [[0, 1], [0, 2], [0, 4], [1, 3], [1, 5], [2, 3], [2, 6], [3, 7], [4, 5], [4, 6], [5, 7], [6, 7]];

  function corner(cell, bits) {
    const at = (axis) => cell[0][axis] * (bits & 1) + cell[1][axis] * ((bits >> 1) & 1) + cell[2][axis] * ((bits >> 2) & 1);
    return { x: at(0), y: at(1), z: at(2) };
  }

  function draw(viewer, scene) {
    viewer.removeAllModels();
    viewer.removeAllShapes();
    viewer.removeAllLabels();
    const neighbours = scene.elements.map(() => []);
    for (const [first, second] of scene.bonds) {
      neighbours[first].push(second);
      neighbours[second].push(first);
    }
    const model = viewer.addModel();
    model.addAtoms(scene.elements.map((elem, index) => ({
      elem, serial: index, atom: elem, properties: {},
      x: scene.positions[index][0], y: scene.positions[index][1], z: scene.positions[index][2],
      bonds: neighbours[index], bondOrder: neighbours[index].map(() => 1),
    })));
    for (const elem of new Set(scene.elements)) {
      const color = data.colours[elem];
      viewer.setStyle({ elem }, { sphere: { radius: 0.2 + 0.22 * data.radii[elem], color }, stick: { radius: 0.09, color } });
    }
    const size = Math.cbrt(Math.abs(
      scene.cell[0][0] * (scene.cell[1][1] * scene.cell[2][2] - scene.cell[1][2] * scene.cell[2][1]) -
      scene.cell[0][1] * (scene.cell[1][0] * scene.cell[2][2] - scene.cell[1][2] * scene.cell[2][0]) +
      scene.cell[0][2] * (scene.cell[1][0] * scene.cell[2][1] - scene.cell[1][1] * scene.cell[2][0])));
    for (const [from, to] of EDGES) {
      viewer.addCylinder({ start: corner(scene.cell, from), end: corner(scene.cell, to), radius: 0.004 * size + 0.012, color: "#39424e", fromCap: 1, toCap: 1 });
    }
    ["a", "b", "c"].forEach((name, axis) => {
      const end = corner(scene.cell, 1 << axis);
      const beyond = 1 + 0.9 / Math.hypot(end.x, end.y, end.z);
      viewer.addLabel(name, {
        position: { x: end.x * beyond, y: end.y * beyond, z: end.z * beyond }, fontColor: "#000000", fontOpacity: 1,
        fontSize: 15, backgroundOpacity: 0, inFront: true, alignment: "center",
      });
    });
    viewer.zoomTo();
    viewer.rotate(-72, "x");
    viewer.rotate(-24, "y");
    viewer.rotate(8, "x");
    viewer.zoom(1.25);
    viewer.render();
  }

  function hasWebGL() {
    const canvas = document.createElement("canvas");
    const context = canvas.getContext("webgl2") || canvas.getContext("webgl");
    if (context) context.getExtension("WEBGL_lose_context")?.loseContext();
    return Boolean(context);
  }

  const drawing = hasWebGL();

  function newViewer(element) {
    if (!drawing) return null;
    try {
      return $3Dmol.createViewer(element, { backgroundColor: "white", antialias: true, disableFog: true, orthographic: true }) || null;
    } catch (error) {
      return null;
    }
  }

  function show(panel, content, viewer) {
    panel.querySelector(".panel-title").textContent = content.title;
    const frame = panel.querySelector(".viewer");
    const obstacle = panel.querySelector(".obstacle");
    const drawable = content.scene && viewer;
    frame.hidden = !drawable;
    obstacle.hidden = Boolean(drawable);
    if (drawable) {
      viewer.resize();
      draw(viewer, content.scene);
    } else {
      obstacle.textContent = content.scene ? "This browser cannot draw in three dimensions (no WebGL)." : `Not drawn: ${content.obstacle}.`;
    }
    const legend = panel.querySelector(".elements");
    legend.replaceChildren(...[...new Set(content.scene ? content.scene.elements : [])].map((elem) => {
      const item = document.createElement("span");
      item.style.setProperty("--colour", data.colours[elem]);
      item.textContent = elem;
      return item;
    }));
    panel.querySelector(".facts").replaceChildren(...content.facts.flatMap(([name, value]) => {
      const term = document.createElement("dt");
      const text = document.createElement("dd");
      term.textContent = name;
      text.textContent = value;
      return [term, text];
    }));
  }

  function download(text, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "chemical/x-cif" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  document.querySelectorAll(".group").forEach((group) => {
    const { cases } = data.groups[Number(group.dataset.group)];
    const panels = [...group.querySelectorAll(".panel")];
    const buttons = [...group.querySelectorAll(".chips button")];
    const own = panels.map((panel) => newViewer(panel.querySelector(".viewer")));
    own.forEach((viewer) => { if (viewer) viewers.push(viewer); });
    if (own.length === 2 && own[0] && own[1]) {
      own[0].linkViewer(own[1]);
      own[1].linkViewer(own[0]);
    }
    let current = 0;
    const choose = (index) => {
      current = index;
      buttons.forEach((button, place) => button.setAttribute("aria-selected", String(place === index)));
      group.querySelector(".verdict").textContent = `${cases[index].formula} (${cases[index].id}): ${cases[index].verdict}`;
      panels.forEach((panel, place) => {
        show(panel, cases[index].panels[place], own[place]);
        panel.querySelector(".download").hidden = !cases[index].panels[place].cif;
      });
    };
    buttons.forEach((button, index) => button.addEventListener("click", () => choose(index)));
    panels.forEach((panel, place) => panel.querySelector(".download").addEventListener("click", () => {
      const { id, panels: contents } = cases[current];
      const name = `${id}${contents.length > 1 ? "-" + contents[place].title : ""}`.replace(/[^A-Za-z0-9._+-]+/g, "_");
      download(contents[place].cif, `${name}.cif`);
    }));
    choose(0);
  });
  document.documentElement.dataset.ready = "true";
})();
