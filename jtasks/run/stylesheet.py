"""The style sheet of a report: light and dark, and readable on a phone."""

STYLE = """
:root{color-scheme:light dark;--ink:#1c2126;--dim:#5b6570;--line:#dde2e7;--paper:#fff;--panel:#f6f8fa;--warn:#9a3412;
--c0:#1f6feb;--c1:#d9480f;--c2:#2b8a3e;--c3:#9c36b5;--c4:#c2255c;--c5:#0b7285;--c6:#8f6a00;--c7:#5c636a}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--dim:#9aa4ae;--line:#343b43;--paper:#14181c;--panel:#1b2026;
--warn:#ffa94d;--c0:#6cb2ff;--c1:#ff9152;--c2:#69db7c;--c3:#da77f2;--c4:#ff7ba5;--c5:#3bc9db;--c6:#ffd43b;--c7:#adb5bd}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1440px;padding:16px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.25;margin:.2em 0}h2{font-size:1.15rem;margin:1.6em 0 .6em}
h3{font-size:.95rem;margin:1em 0 .3em}
header p,.note,footer,small{color:var(--dim)}header p{margin:0}footer{margin:2.5em 0 .5em;font-size:.85rem}
.problem{color:var(--warn);margin:.4em 0}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:.87rem;overflow-wrap:normal}
th,td{padding:4px 14px 4px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line);font-weight:400;
max-width:30rem;min-width:3.5rem;overflow-wrap:break-word}
thead th{color:var(--dim);white-space:nowrap}
th:first-child{position:sticky;left:0;background:var(--paper);white-space:normal;
max-width:min(24rem,55vw)}
td{font-variant-numeric:tabular-nums}
.figures td,.figures thead th+th{text-align:right;padding-left:14px;padding-right:0;white-space:nowrap}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:18px}
figure{margin:0;min-width:0}
.charts figcaption{font-size:.87rem;font-weight:600}figcaption small{font-weight:400;margin-left:.6em}
.charts svg{display:block;width:100%;height:auto}
svg text{font:11px system-ui,sans-serif;fill:var(--dim)}
.grid,.axis{stroke:var(--line);fill:none}.axis{stroke:var(--dim)}
.line{stroke:var(--c);fill:none;stroke-width:1.6;stroke-linejoin:round}circle.line{fill:var(--c);stroke:none}
.faint{opacity:.4;stroke-width:1.1}.cross{opacity:1}
.d1{stroke-dasharray:6 3}.d2{stroke-dasharray:2 2}.d3{stroke-dasharray:8 3 2 3}
.c0{--c:var(--c0)}.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}
.c4{--c:var(--c4)}.c5{--c:var(--c5)}.c6{--c:var(--c6)}.c7{--c:var(--c7)}
.strip{fill:transparent}.strip:hover{fill:var(--dim);opacity:.18}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;list-style:none;padding:0;margin:0 0 12px;font-size:.87rem}
.legend li{display:flex;align-items:center;gap:6px;min-width:0}.legend svg{width:24px;height:8px;flex:none}
.pictures{display:flex;flex-wrap:wrap;gap:18px}.pictures figcaption{color:var(--dim);font-size:.85rem}
img{max-width:100%;height:auto;display:block;background:var(--panel)}.pixels{image-rendering:pixelated}
pre{background:var(--panel);padding:10px 12px;border-radius:4px;white-space:pre-wrap;
font:13px/1.45 ui-monospace,monospace;
margin:0;max-height:28rem;overflow:auto}
"""
