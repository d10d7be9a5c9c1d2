//! How pages look: light, or dark where the reader's system is.

/// Of every page.
pub(crate) const STYLE: &str = "\
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1c2128;--dim:#5c6670;--line:#dfe3e8;--grid:#e9ecef;--axis:#aab2bb;\
--good:#1a7f37;--bad:#c01c28;--on:#d5efdb;--cut:#f9d9dc;--pale:#b9c7d4;\
--s0:#1f6fb2;--s1:#b35900;--s2:#2a7f3e;--s3:#8b3fa0;--s4:#c01c28;--s5:#666;--s6:#007a87;--s7:#8a6d00;\
--forward:#4a90d9;--recompute:#9cc3ea;--backward:#6f57c4;--update:#e0872e;--weights:#3d9a57;--optimizer:#c9a227;--gradients:#cf4f6b;\
--activations:#2aa3a3;--other:#8a939d}\
@media(prefers-color-scheme:dark){:root{--bg:#0f1318;--card:#171c23;--ink:#e3e8ee;--dim:#93a0ad;--line:#2b333d;--grid:#242b34;--axis:#55606c;\
--good:#4cc26b;--bad:#ff7b7b;--on:#17402a;--cut:#57232a;--pale:#3b4a5a;\
--s0:#58a6ff;--s1:#f0883e;--s2:#56d364;--s3:#c297ff;--s4:#ff7b72;--s5:#a0a8b0;--s6:#39c5cf;--s7:#d9b93b;\
--forward:#5aa2ee;--recompute:#35608c;--backward:#8e78e6;--update:#e8994b;--weights:#4fb36b;--optimizer:#d8b645;--gradients:#e2708a;\
--activations:#39bcbc;--other:#77818c}}\
*{box-sizing:border-box}\
body{font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;max-width:76rem;margin:0 auto;padding:1.5rem 1rem 4rem;\
color:var(--ink);background:var(--bg)}\
h1{font-size:1.5rem;margin:.2rem 0 1rem;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:2.2rem 0 .7rem}h3{font-size:1rem;margin:1rem 0 .3rem}\
p.note{color:var(--dim);margin:.2rem 0 .6rem}\
table{border-collapse:collapse;margin:.4rem 0 1rem;display:block;overflow-x:auto}\
td,th{padding:.28rem 1rem .28rem 0;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}\
th{color:var(--dim);font-weight:500}td:first-child{color:var(--dim)}\
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}tr.differs td{background:color-mix(in srgb,var(--s1) 9%,transparent)}\
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(11.5rem,1fr));gap:.7rem;margin-bottom:1rem}\
.tile,.card{background:var(--card);border:1px solid var(--line);border-radius:9px}\
.tile{padding:.6rem .85rem}.tile span{display:block;color:var(--dim);font-size:.8rem}.tile b{font-size:1.3rem;font-weight:600;\
font-variant-numeric:tabular-nums}.tile i{display:block;font-style:normal;color:var(--dim);font-size:.8rem}\
.card{padding:.7rem .8rem;margin:0 0 .9rem;overflow-x:auto}.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(26rem,1fr));gap:.9rem}\
.two .card{margin:0}@media(max-width:30rem){.two{grid-template-columns:1fr}}\
svg{display:block;max-width:100%;height:auto}.wide>svg{min-width:56rem}svg text{fill:var(--dim)}svg text.title{fill:var(--ink)}\
.grid{stroke:var(--grid)}.axis{stroke:var(--axis)}.mark{stroke:var(--dim);stroke-dasharray:2 3}.limit{stroke:var(--bad);stroke-dasharray:5 4}\
.curve{fill:none;stroke-width:1.7;stroke-linejoin:round}.faint{fill:none;stroke-width:1;opacity:.35}\
.bar{display:block;height:.55rem;border-radius:2px;background:var(--s0);margin:.16rem 0}.bar.p{background:var(--pale)}\
.legend{list-style:none;padding:0;margin:.3rem 0 .7rem;display:flex;flex-wrap:wrap;gap:.25rem 1.2rem;color:var(--dim);font-size:.85rem}\
.legend li{display:flex;align-items:center;gap:.4rem}.legend svg{flex:none}\
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--bg);border:1px solid var(--line);border-radius:6px;padding:.6rem .8rem;margin:.2rem 0;\
font:13px/1.5 ui-monospace,'DejaVu Sans Mono',monospace}\
.answers{display:grid;grid-template-columns:1fr 1fr;gap:.2rem .9rem}.answers p{margin:.3rem 0 0}@media(max-width:45rem){.answers{grid-template-columns:1fr}}\
.on{background:var(--on)}.cut{background:var(--cut);text-decoration:line-through}\
.right{color:var(--good)}.wrong{color:var(--bad)}summary{cursor:pointer;color:var(--dim);margin:.4rem 0}\
@media print{body{background:#fff}.card,.tile{break-inside:avoid}}";

/// Of a picture that is a file of its own: colours, light and dark, and what text and lines look like.
pub(crate) fn alone() -> String {
    let end = STYLE.find("*{").unwrap_or(0);
    let lines = ".grid{stroke:var(--grid)}.axis{stroke:var(--axis)}.paper{fill:var(--card)}";
    let text = "text{fill:var(--dim);font-family:system-ui,'DejaVu Sans',sans-serif}text.title{fill:var(--ink)}";
    format!("{}{lines}{text}", &STYLE[..end])
}

/// Dashes of series in one picture, for readers to whom their colours look alike.
const DASHES: [&str; 8] = ["none", "7 3", "2 3", "9 3 2 3", "5 2", "1 3", "12 3", "4 4"];

/// The colour of a series and its dashes.
pub(crate) fn series(i: usize) -> (String, &'static str) {
    let i = i % DASHES.len();
    (format!("var(--s{i})"), DASHES[i])
}

/// Kinds of tasks and contents of memory with their colours.
pub(crate) const COLOURS: [(&str, &str); 9] = [
    ("forward", "forward"),
    ("recompute", "recompute"),
    ("backward", "backward"),
    ("update", "update"),
    ("weights", "weights"),
    ("optimizer state", "optimizer"),
    ("gradients", "gradients"),
    ("activations", "activations"),
    ("inputs and scratch", "other"),
];

/// The colour of a kind of task or of a content; of one that is not known that of others.
pub(crate) fn colour(kind: &str) -> &'static str {
    let found = COLOURS.iter().find(|(name, _)| *name == kind);
    found.map_or("other", |(_, colour)| colour)
}
