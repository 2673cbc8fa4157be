// Keyboard shortcuts, and the panel that lists them.

const SHORTCUTS = [
  ["Draw", [
    ["B", "brush"], ["E", "eraser"], ["P", "polygon"], ["H", "move the view"], ["[  ]", "smaller, larger brush"],
    ["1 … 9", "choose object"], ["N", "add an object"], ["Ctrl Z", "undo"], ["Ctrl Shift Z", "redo"],
    ["C", "copy mask of the frame before"],
  ]],
  ["Draw with the keyboard (drawing area focused)", [
    ["Arrow keys", "move the cursor by 1 px"], ["Shift + arrow keys", "by 10 px"],
    ["Enter", "start or end a stroke; polygon: add a point"], ["Shift Enter", "close the polygon"],
    ["Escape", "cancel stroke or polygon"],
  ]],
  ["View", [
    ["Wheel", "zoom"], ["+  −", "zoom"], ["F", "fit"], ["Z", "one pixel of the video per pixel of the screen"],
    ["Space + drag", "move the view"], ["M", "show or hide the masks"],
  ]],
  ["Frames and runs", [
    [",  .", "previous, next frame"], ["Shift ,  Shift .", "ten frames"], ["Home  End", "first, last frame"],
    ["K", "play"], ["J  L", "previous, next frame worth a look"], ["R", "run, or cancel"], ["?", "this list"],
  ]],
];

export function fillHelp(element) {
  for (const [title, keys] of SHORTCUTS) {
    const group = document.createElement("div");
    const heading = document.createElement("h3");
    heading.textContent = title;
    group.append(heading);
    for (const [combination, effect] of keys) {
      const row = document.createElement("div");
      const label = document.createElement("span");
      label.textContent = effect;
      const shown = document.createElement("span");
      shown.className = "combination";
      for (const each of combination.split("  ")) {
        const key = document.createElement("kbd");
        key.textContent = each;
        shown.append(key, " ");
      }
      row.append(label, shown);
      group.append(row);
    }
    element.append(group);
  }
}

/** Call the actions of main.js for the shortcuts. */
export function handleKeys(actions, drawing) {
  const canvas = document.getElementById("canvas");
  const plain = {
    b: () => actions.tool("brush"),
    e: () => actions.tool("eraser"),
    p: () => actions.tool("polygon"),
    h: () => actions.tool("hand"),
    n: actions.addObject,
    c: actions.copyBefore,
    f: actions.fit,
    z: actions.full,
    m: actions.toggleMasks,
    k: actions.play,
    r: actions.run,
    j: () => actions.worth(-1),
    l: () => actions.worth(1),
    "[": () => actions.size(-1),
    "]": () => actions.size(1),
    "+": () => actions.zoom(1.25),
    "=": () => actions.zoom(1.25),
    "-": () => actions.zoom(1 / 1.25),
    ",": () => actions.step(-1),
    ".": () => actions.step(1),
    "<": () => actions.step(-10),
    ">": () => actions.step(10),
    ";": () => actions.step(-10),
    ":": () => actions.step(10),
    "?": actions.help,
    home: () => actions.end(0),
    end: () => actions.end(actions.last()),
  };
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || document.querySelector("dialog[open]")) return;
    const { target } = event;
    const isText = target.matches?.("input[type=text], input[type=number]");
    if (event.ctrlKey || event.metaKey) {
      const key = event.key.toLowerCase();
      if (isText || event.altKey) return;
      if (key === "z") event.shiftKey ? actions.redo() : actions.undo();
      else if (key === "y") actions.redo();
      else return;
      event.preventDefault();
      return;
    }
    if (event.altKey || isText) return;
    if (event.key === " " && (target === canvas || target === document.body)) {
      drawing.holdSpace(true);
      event.preventDefault();
      return;
    }
    if (target === canvas && drawing.key(event)) {
      event.preventDefault();
      return;
    }
    if (target.matches?.("input[type=range], input[type=radio]") && /^(Arrow|Home|End|Page)/.test(event.key)) return;
    const digit = /^[1-9]$/.test(event.key) ? Number(event.key) : 0;
    const action = digit ? () => actions.object(digit) : plain[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action();
  });
  addEventListener("keyup", (event) => event.key === " " && drawing.holdSpace(false));
  addEventListener("blur", () => drawing.holdSpace(false));
}
