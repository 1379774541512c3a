// Text that is outside the window (unless its box scrolls), is cut off by its box or its figure, or covers other text.
() => {
  const faults = [], boxes = [], wide = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > wide + 1) faults.push(`the page scrolls sideways: ${document.documentElement.scrollWidth} > ${wide}`);
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walk.nextNode();) {
    const text = node.data.trim(), parent = node.parentElement;
    if (!text || !parent.checkVisibility({contentVisibilityAuto: true, opacityProperty: true, visibilityProperty: true})) continue;
    const scrolls = parent.closest('.scroll, pre'), svg = parent.closest('svg');
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) {
      if (box.width < 2 || box.height < 2) continue;
      const seen = text.slice(0, 40);
      if (!scrolls && (box.right > wide + 1 || box.left < -1)) faults.push(`outside: ${seen}`);
      const clip = svg && svg.getBoundingClientRect();
      if (clip && (box.right > clip.right + 2 || box.left < clip.left - 2)) faults.push(`cut by its figure: ${seen}`);
      if (!parent.closest('pre')) boxes.push({box, seen, parent});
    }
  }
  for (const element of document.querySelectorAll('body *')) {
    const how = getComputedStyle(element);
    if (['hidden', 'clip'].includes(how.overflowX) && element.scrollWidth > element.clientWidth + 1 && element.textContent.trim() && !element.closest('svg'))
      faults.push(`cut: ${element.textContent.trim().slice(0, 40)}`);
  }
  boxes.sort((a, b) => a.box.top - b.box.top);
  boxes.forEach((first, i) => {
    for (let j = i + 1; j < boxes.length && boxes[j].box.top < first.box.bottom - 3; j++) {
      const other = boxes[j];
      const across = Math.min(first.box.right, other.box.right) - Math.max(first.box.left, other.box.left);
      const down = Math.min(first.box.bottom, other.box.bottom) - Math.max(first.box.top, other.box.top);
      if (across > 2 && down > 4 && first.parent !== other.parent) faults.push(`overlap: ${first.seen} | ${other.seen}`);
    }
  });
  return faults;
}
