"use strict";
(() => {
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const { draw, drawCell, newViewer, legend } = CrystalView;
  const section = document.getElementById("player");
  const find = (selector) => section.querySelector(selector);
  const [frame, obstacle, play, seek, clock, speed] = [".viewer", ".obstacle", ".play", ".seek", ".clock", ".speed"].map(find);
  const buttons = [...section.querySelectorAll(".chips button")];
  const viewer = newViewer(frame);
  const player = { viewer, clip: 0, frame: 0, playing: false };
  window.crystalPlayer = player;
  let model = null;
  let due = 0;

  function place(index) {
    const clip = data.clips[player.clip];
    player.frame = index;
    seek.value = String(index);
    const elapsed = clip.times[index] - clip.times[0];
    clock.textContent = `frame ${clip.start + index}, ${elapsed.toFixed(0)} fs`;
    if (!model) return;
    model.selectedAtoms({}).forEach((atom, row) => { [atom.x, atom.y, atom.z] = clip.positions[index][row]; });
    model.setStyle({}, {}, true); // atoms that moved are drawn anew
    drawCell(viewer, clip.cells[index]);
    viewer.render();
  }

  function choose(number) {
    player.clip = number;
    const clip = data.clips[number];
    buttons.forEach((button) => button.setAttribute("aria-selected", String(Number(button.dataset.clip) === number)));
    const drawable = clip.scene && viewer;
    frame.hidden = !drawable;
    obstacle.hidden = Boolean(drawable);
    frame.style.borderColor = data.motifColours[clip.motif];
    seek.max = String(clip.times.length - 1);
    model = null;
    if (drawable) {
      viewer.resize();
      model = draw(viewer, clip.scene, data);
    } else {
      obstacle.textContent = clip.scene ? "This browser cannot draw in three dimensions (no WebGL)." : `Not drawn: ${clip.obstacle}.`;
    }
    legend(find(".elements"), clip.scene ? clip.scene.elements : [], data);
    place(0);
  }

  function run(now) {
    if (!player.playing) return;
    if (now >= due) {
      due = now + 1000 / Number(speed.value);
      place((player.frame + 1) % data.clips[player.clip].times.length);
    }
    requestAnimationFrame(run);
  }

  function setPlaying(playing) {
    player.playing = playing;
    play.textContent = playing ? "❚❚ Pause" : "▶ Play";
    play.setAttribute("aria-label", playing ? "Pause" : "Play");
    if (playing) requestAnimationFrame(run);
  }

  buttons.forEach((button) => button.addEventListener("click", () => choose(Number(button.dataset.clip))));
  play.addEventListener("click", () => setPlaying(!player.playing));
  seek.addEventListener("input", () => { setPlaying(false); place(Number(seek.value)); });
  choose(Number(buttons[0].dataset.clip));
  document.documentElement.dataset.ready = "true";
})();
