// What the whole page shares: its address, the divider between two pictures, and playing the scales.
(() => {
  // Settings of the address, without gradio's own entries.
  window.nextscaleArrival = () => window.location.search;

  // The address becomes that of what is shown; what comes back is the link to copy.
  window.nextscaleLink = (query) => {
    if (!query) return "";
    const theme = new URLSearchParams(window.location.search).get("__theme");
    const address = window.location.pathname + query + (theme ? `&__theme=${encodeURIComponent(theme)}` : "");
    window.history.replaceState(window.history.state, "", address);
    return window.location.origin + window.location.pathname + query;
  };

  // One place for all dividers, so that it stays where it is when pictures are exchanged.
  document.addEventListener("input", (event) => {
    if (event.target.classList?.contains("ns-divider"))
      document.documentElement.style.setProperty("--ns-split", `${event.target.value}%`);
  });

  // Question marks open and close the words beside them.
  document.addEventListener("click", (event) => {
    const mark = event.target.closest?.("[data-help]");
    const words = mark && document.getElementById(`ns-words-${mark.dataset.help}`);
    if (words) mark.setAttribute("aria-expanded", String(!(words.hidden = !words.hidden)));
  });

  // Play the scales: the large pictures once more from coarse to fine.
  let playing = false;
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("[data-play]");
    const rows = [...document.querySelectorAll("#ns-film table tr")].slice(1);
    const stage = ["a", "b"].map((side) => document.querySelector(`#ns-slider img.ns-${side}`));
    if (!button || playing || rows.length !== 2 || stage.includes(null)) return;
    playing = true;
    button.disabled = true;
    const kept = stage.map((image) => image.src);
    const frames = rows.map((row) => [...row.querySelectorAll("img")].map((image) => image.src));
    document.querySelector("#ns-slider").scrollIntoView({block: "nearest", behavior: "smooth"});
    for (let step = 0; step < frames[0].length; step += 1) {
      rows.forEach((row) => row.querySelectorAll("td").forEach((cell, i) => cell.classList.toggle("ns-now", i === step)));
      stage.forEach((image, side) => { image.src = frames[side][step] ?? kept[side]; });
      await new Promise((done) => setTimeout(done, 450));
    }
    rows.forEach((row) => row.querySelectorAll("td").forEach((cell) => cell.classList.remove("ns-now")));
    stage.forEach((image, side) => {
      if (image.src === frames[side].at(-1)) image.src = kept[side]; // unless something new was drawn meanwhile
    });
    button.disabled = false;
    playing = false;
  });
})();
