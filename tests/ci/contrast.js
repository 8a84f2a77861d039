// Every text on the page whose contrast with what is behind it is below WCAG AA's 4.5: [text, ratio].
() => {
  const numbers = (colour) => (colour.match(/[\d.]+/g) || []).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [light, dark] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    return (light + 0.05) / (dark + 0.05);
  };
  // A hatched background is as bad as its worst stripe.
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const style = getComputedStyle(e);
      const stripes = style.backgroundImage.match(/rgba?\([^)]*\)/g);
      if (stripes) return stripes.map((c) => numbers(c).slice(0, 3));
      const [r, g, b, alpha = 1] = numbers(style.backgroundColor);
      if (alpha > 0) return [[r, g, b]];
    }
    return [[255, 255, 255]];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest(".sr, svg") || !element.getClientRects().length) continue;
    const text = numbers(getComputedStyle(element).color).slice(0, 3);
    const ratio = Math.min(...behind(element).map((back) => contrast(text, back)));
    if (ratio < 4.5) found.push([node.data.trim(), ratio]);
  }
  return found;
}
