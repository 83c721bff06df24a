"use strict";
/* What the report and notebooks share: a crystal as 3Dmol.js draws it. `look` holds colours and radii by element. */
const CrystalView = (() => {
  const EDGES = [[0, 1], [0, 2], [0, 4], [1, 3], [1, 5], [2, 3], [2, 6], [3, 7], [4, 5], [4, 6], [5, 7], [6, 7]];

  function corner(cell, bits) {
    const at = (axis) => cell[0][axis] * (bits & 1) + cell[1][axis] * ((bits >> 1) & 1) + cell[2][axis] * ((bits >> 2) & 1);
    return { x: at(0), y: at(1), z: at(2) };
  }

  function drawCell(viewer, cell) {
    viewer.removeAllShapes();
    viewer.removeAllLabels();
    const size = Math.cbrt(Math.abs(
      cell[0][0] * (cell[1][1] * cell[2][2] - cell[1][2] * cell[2][1]) -
      cell[0][1] * (cell[1][0] * cell[2][2] - cell[1][2] * cell[2][0]) +
      cell[0][2] * (cell[1][0] * cell[2][1] - cell[1][1] * cell[2][0])));
    for (const [from, to] of EDGES) {
      viewer.addCylinder({ start: corner(cell, from), end: corner(cell, to), radius: 0.004 * size + 0.012, color: "#39424e", fromCap: 1, toCap: 1 });
    }
    ["a", "b", "c"].forEach((name, axis) => {
      const end = corner(cell, 1 << axis);
      const beyond = 1 + 0.9 / Math.hypot(end.x, end.y, end.z);
      viewer.addLabel(name, {
        position: { x: end.x * beyond, y: end.y * beyond, z: end.z * beyond }, fontColor: "#000000", fontOpacity: 1,
        fontSize: 15, backgroundOpacity: 0, inFront: true, alignment: "center",
      });
    });
  }

  // Returns the model, whose atoms stand in the scene's order.
  function draw(viewer, scene, look) {
    viewer.removeAllModels();
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
      const color = look.colours[elem];
      viewer.setStyle({ elem }, { sphere: { radius: 0.2 + 0.22 * look.radii[elem], color }, stick: { radius: 0.09, color } });
    }
    drawCell(viewer, scene.cell);
    viewer.setView([0, 0, 0, 0, 0, 0, 0, 1]);  // whatever was shown before, from the same side
    viewer.zoomTo();
    viewer.rotate(-72, "x");
    viewer.rotate(-24, "y");
    viewer.rotate(8, "x");
    viewer.zoom(1.25);
    viewer.render();
    return model;
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

  function legend(place, elements, look) {
    place.replaceChildren(...[...new Set(elements)].map((elem) => {
      const item = document.createElement("span");
      item.style.setProperty("--colour", look.colours[elem]);
      item.textContent = elem;
      return item;
    }));
  }

  return { draw, drawCell, newViewer, legend };
})();
