"use strict";
(() => {
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const viewers = [];
  window.crystalViewers = viewers;

  function show(panel, content, viewer) {
    panel.querySelector(".panel-title").textContent = content.title;
    const frame = panel.querySelector(".viewer");
    const obstacle = panel.querySelector(".obstacle");
    const drawable = content.scene && viewer;
    frame.hidden = !drawable;
    obstacle.hidden = Boolean(drawable);
    if (drawable) {
      viewer.resize();
      CrystalView.draw(viewer, content.scene, data);
    } else {
      obstacle.textContent = content.scene ? "This browser cannot draw in three dimensions (no WebGL)." : `Not drawn: ${content.obstacle}.`;
    }
    CrystalView.legend(panel.querySelector(".elements"), content.scene ? content.scene.elements : [], data);
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
    const own = panels.map((panel) => CrystalView.newViewer(panel.querySelector(".viewer")));
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
