const slides = [...document.querySelectorAll('.slide')], page = document.body;
let at = 0;
function size() {
  const by = Math.min(innerWidth / 1280, innerHeight / 720);
  for (const s of slides) s.style.transform = `translate(${(innerWidth - 1280 * by) / 2}px, ${(innerHeight - 720 * by) / 2}px) scale(${by})`;
}
function fit(s) {  // text a little smaller rather than cut off
  const b = s.querySelector('.body'); let by = 1;
  b.style.fontSize = '';
  while (b.scrollHeight > b.clientHeight + 1 && by > 0.6) { by -= 0.04; b.style.fontSize = `${24 * by}px`; }
  s.dataset.fit = by.toFixed(2);
}
function show(i, move = true) {
  at = Math.max(0, Math.min(slides.length - 1, i));
  slides.forEach((s, n) => { s.classList.toggle('now', n === at); s.setAttribute('aria-hidden', n !== at); });
  document.getElementById('where').textContent = `${at + 1} / ${slides.length}`;
  if (move) history.replaceState(null, '', `#${at + 1}`);
}
page.classList.add('on'); size(); slides.forEach(fit); show((parseInt(location.hash.slice(1)) || 1) - 1, false);
addEventListener('resize', size);
addEventListener('hashchange', () => show((parseInt(location.hash.slice(1)) || 1) - 1, false));
addEventListener('keydown', e => {
  if (e.ctrlKey || e.altKey || e.metaKey || e.target.tagName === 'BUTTON' && (e.key === ' ' || e.key === 'Enter')) return;
  const step = { ArrowRight: 1, PageDown: 1, ' ': 1, ArrowDown: 1, ArrowLeft: -1, PageUp: -1, ArrowUp: -1 }[e.key];
  if (step) { show(at + step); e.preventDefault(); }
  else if (e.key === 'Home') show(0); else if (e.key === 'End') show(slides.length - 1);
  else if (e.key === 'n') page.classList.toggle('speak');
  else if (e.key === 'f') document.documentElement.requestFullscreen?.();
});
document.getElementById('back').onclick = () => show(at - 1);
document.getElementById('on').onclick = () => show(at + 1);
document.getElementById('speak').onclick = () => page.classList.toggle('speak');
