// How well every text that can be seen stands out: {text, ratio, colour, paper} of those below what is asked for,
// and how many were looked at. Ratios of luminances are those of WCAG 2.
(asked) => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1});
  const context = canvas.getContext("2d", {willReadFrequently: true});
  const read = (colour) => { // red, green, blue, alpha of any colour that CSS can write
    const plain = colour.match(/^rgba?\(([^)]+)\)$/)?.[1].split(/[ ,/]+/).map(Number);
    if (plain) return [...plain.slice(0, 3), plain[3] ?? 1];
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((c, i) => c * a + below[i] * (1 - a));
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (one, other) => {
    const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  };
  const paperOf = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      if (at !== element && at.classList.contains("ns-compare")) {
        layers.push([255, 255, 255, 1]); // a picture, which may be white there
        break;
      }
      const style = getComputedStyle(at);
      layers.push(read(style.backgroundColor));
      if (layers.at(-1)[3] === 1) break;
    }
    return layers.reduceRight((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const opacityOf = (element) => {
    let product = 1;
    for (let at = element; at; at = at.parentElement) product *= Number(getComputedStyle(at).opacity);
    return product;
  };
  const poor = [];
  let count = 0;
  const look = (element, text, colour) => {
    const box = element.getBoundingClientRect();
    if (!text.trim() || !element.checkVisibility({visibilityProperty: true}) || box.width < 2 || box.height < 2) return;
    const opacity = opacityOf(element);
    if (opacity === 0) return; // drawn by something else, as the buttons behind pictures of buttons
    const paper = paperOf(element);
    const [r, g, b, a] = read(colour);
    const found = ratio(over([r, g, b, a * opacity], paper), paper);
    count += 1;
    if (found < asked) poor.push({text: text.trim().slice(0, 40), ratio: found, colour, paper: String(paper.map(Math.round))});
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (["SCRIPT", "STYLE", "NOSCRIPT", "TITLE", "TEXTAREA"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    look(element, texts.currentNode.data, element.tagName === "text" ? style.fill : style.color);
  }
  for (const field of document.querySelectorAll("input:not([type=range]):not([type=checkbox]):not([type=radio]), textarea")) {
    look(field, field.value, getComputedStyle(field).color);
    look(field, field.placeholder, getComputedStyle(field, "::placeholder").color);
  }
  return {poor, count};
}
