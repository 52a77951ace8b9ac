"""How a report looks."""

STYLE = """<style>
:root { color-scheme: light; --ink: #0b0b0b; --soft: #52514e; --rule: #e1e0d9; --blue: #2a78d6; --red: #e34948; }
body { margin: 0; background: #f9f9f7; color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px; }
h1 { font-size: 24px; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 8px; }
.warn { color: #8a1f1f; font-weight: 600; margin: 0 0 16px; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; }
.tiles div { background: #fff; border: 1px solid var(--rule); border-radius: 6px; padding: 10px 16px; }
.tiles div { color: var(--soft); }
.tiles b { display: block; font-size: 22px; color: var(--ink); font-weight: 600; }
.wide { overflow-x: auto; margin-bottom: 12px; }
table { border-collapse: collapse; background: #fff; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 14px 5px 10px; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td { overflow-wrap: break-word; }
svg { width: 100%; max-width: 820px; background: #fff; border: 1px solid var(--rule); border-radius: 6px; }
svg text { font-size: 11px; fill: var(--soft); } .mid { text-anchor: middle; } .end { text-anchor: end; }
svg line { stroke: var(--soft); } svg .thr { stroke: var(--ink); stroke-dasharray: 4 3; }
rect.pos, i.pos { fill: var(--red); background: var(--red); }
rect.neg, i.neg { fill: var(--blue); background: var(--blue); }
rect.un, i.un { fill: #898781; background: #898781; }
.legend span { margin-right: 20px; color: var(--soft); }
.legend i { display: inline-block; width: 11px; height: 11px; margin-right: 6px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 14px; }
figure { margin: 0; background: #fff; border: 1px solid var(--rule); border-radius: 6px; padding: 8px; }
figure img { width: 100%; aspect-ratio: 1; object-fit: contain; }
figcaption { overflow-wrap: anywhere; font-size: 13px; }
a { color: #1c5cab; }
footer { margin-top: 40px; color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
</style>"""
