function fit(slide) {  // text a little smaller rather than cut off
  const body = slide.querySelector('.body'); let by = 1;
  if (slide.dataset.fit || !body.clientHeight) return;  // reveal.js lays out only the slides near the one that is shown
  while (body.scrollHeight > body.clientHeight + 1 && by > 0.6) { by -= 0.04; body.style.fontSize = `${24 * by}px`; }
  slide.dataset.fit = by.toFixed(2);
}
for (const event of ['ready', 'slidechanged', 'pdf-ready']) Reveal.on(event, () => Reveal.getSlides().forEach(fit));
Reveal.initialize({ width: 1280, height: 720, margin: 0, center: false, hash: true, transition: 'none', slideNumber: 'c/t', controlsLayout: 'edges', plugins: [RevealNotes] });
