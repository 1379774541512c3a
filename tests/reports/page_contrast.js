// Text whose contrast with its background is too low by WCAG's ratio.
() => {
  const parse = text => (text.match(/[\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const background = element => { for (let node = element; node; node = node.parentElement) {
    const colour = parse(getComputedStyle(node).backgroundColor); if (colour.length === 3 || colour[3] > 0) return colour; } return [255, 255, 255]; };
  const poor = [];
  for (const element of document.querySelectorAll('p, dd, dt, th, td, summary, figcaption, h1, h2, h3, h4, a, code, .value, .printed, .difference')) {
    if (!element.textContent.trim() || element.matches('.zero')) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(background(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4) poor.push(`${ratio.toFixed(1)} ${element.className} ${element.textContent.trim().slice(0, 30)}`);
  }
  return poor;
}
