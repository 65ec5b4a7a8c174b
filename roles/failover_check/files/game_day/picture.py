"""Draws what became of each message of a fault, as SVG to stand inside a page.

Colours are drawn as stand-ins and become variables of the page's style sheet, so that one picture
serves light, dark and paper. It holds no text of the evidence: names stand beside it, on the page.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Shape
from matplotlib.ticker import FixedLocator, MaxNLocator

from game_day.evidence import ACKNOWLEDGED, Fault, Message
from game_day.judge import find_ejection, find_readmission, is_excused
from game_day.wording import MINUS

SERVERS = 4
"""As many servers have a colour and a mark of their own."""

_STAND_INS = {
    "#010101": "ink",
    "#010102": "muted",
    "#010103": "line",
    "#010104": "shade",
    "#010105": "limit",
    "#010106": "bad",
    "#010107": "excused",
    "#010108": "mark",
    **{f"#01011{number}": f"server-{number}" for number in range(SERVERS)},
}
_COLOURS = {name: colour for colour, name in _STAND_INS.items()}


@dataclass(frozen=True)
class Mark:
    """How a message is drawn: a path that begins beside it, and the pen.

    Marks differ in form, for print and for those who tell colours apart less well.
    """

    colour: str
    beside: tuple[float, float]
    path: str
    width: float
    cap: str = "butt"

    def draw(self, x: float, y: float) -> str:
        """The path of a message at a point."""
        return f"M{_say(x + self.beside[0])} {_say(y + self.beside[1])}{self.path}"


MARKS = {
    "server-0": Mark("server-0", (0, 0), "h0", 3.0, "round"),
    "server-1": Mark("server-1", (-1.3, 0), "h2.6", 2.6),
    "server-2": Mark("server-2", (0, -2), "v4", 1.5),
    "server-3": Mark("server-3", (-1.5, -1.5), "l3 3", 1.4),
    "excused": Mark("excused", (-2, 0), "h4m-2-2v4", 0.9),
    "bad": Mark("bad", (-3.2, -3.2), "l6.4 6.4m0-6.4l-6.4 6.4", 1.8),
}

# Any: not every release of matplotlib has names for these in its types.
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "path.simplify": False,
    "font.size": 12,
    "axes.edgecolor": _COLOURS["line"],
    "axes.labelcolor": _COLOURS["muted"],
    "xtick.color": _COLOURS["line"],
    "ytick.color": _COLOURS["line"],
    "xtick.labelcolor": _COLOURS["muted"],
    "ytick.labelcolor": _COLOURS["muted"],
    "text.color": _COLOURS["ink"],
}
_SIZE = (10.0, 4.1)
"""Inches, of 72 units each."""


def sort_messages(fault: Fault, servers: list[str]) -> dict[str, list[Message]]:
    """The messages by their marks: who stored them, ``bad`` (failed, lost, ...) or ``excused``."""
    lists = fault.verdict.wrong.values() if fault.verdict else ()
    wrong = {number for numbers in lists for number in numbers}
    kinds: dict[str, list[Message]] = {name: [] for name in MARKS}
    for message in fault.history or []:
        if message.number in wrong:
            kind = "bad"
        elif message.fate == ACKNOWLEDGED:
            known = servers.index(message.server) if message.server in servers else 0
            kind = f"server-{known % SERVERS}"
        else:
            kind = "excused" if is_excused(message, fault) else "bad"
        kinds[kind].append(message)
    return kinds


def draw_fault(fault: Fault, servers: list[str], prefix: str) -> str:
    """An ``svg`` element whose ids begin with ``prefix``. The fault has a history and its times.

    From left to right: seconds from the act. Upwards: milliseconds from when a message was due to
    its answer; one without an answer is at the upper edge.
    """
    assert fault.acted is not None
    assert fault.restored is not None
    kinds = sort_messages(fault, servers)
    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": prefix}):
        figure = Figure(figsize=_SIZE)
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.09, 0.14, 0.895, 0.785))
        top = _set_axes(axes, fault)
        _draw_fault_itself(axes, fault, top)
        for kind, messages in kinds.items():
            _draw_messages(axes, kind, messages, fault.acted, top)
        file = io.StringIO()
        figure.savefig(
            file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return _make_inline(file.getvalue(), prefix)


def _set_axes(axes: Axes, fault: Fault) -> float:
    """Returns the upper edge, in milliseconds."""
    assert fault.acted is not None
    assert fault.restored is not None
    messages = fault.history or []
    times = [one.milliseconds for one in messages if one.milliseconds is not None]
    limits = [limit for limit in (fault.bound.worst_ms, fault.bound.recovery_ms) if limit]
    top = max([100.0, *times, *limits]) * 2.4
    axes.set_yscale("log")
    axes.set_ylim(1.0, top)
    decades = [10.0**power for power in range(int(math.log10(top)) + 1)]
    axes.yaxis.set_major_locator(FixedLocator(decades))
    axes.yaxis.set_minor_locator(FixedLocator([]))
    axes.set_yticks(decades, [_name_decade(decade) for decade in decades])
    dues = [message.due - fault.acted for message in messages] or [0.0]
    left, right = min(*dues, 0.0), max(*dues, fault.restored - fault.acted)
    axes.set_xlim(left - (right - left) * 0.01, right + (right - left) * 0.01)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _position: f"{value:g} s".replace("-", MINUS))
    axes.grid(axis="y", color=_COLOURS["line"], linewidth=0.6)
    axes.tick_params(length=0, pad=6)
    axes.tick_params(axis="x", pad=10)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return top


def _name_decade(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.0f} s"


def _draw_fault_itself(axes: Axes, fault: Fault, top: float) -> None:
    """Its time, its bound, and when the server was out and back."""
    assert fault.acted is not None
    assert fault.restored is not None
    lasts, bound = fault.restored - fault.acted, fault.bound
    axes.axvspan(0, lasts, color=_COLOURS["shade"], linewidth=0, zorder=0)
    left, right = axes.get_xlim()
    pen: dict[str, Any] = {
        "color": _COLOURS["limit"],
        "linewidth": 1.3,
        "dashes": (5, 3),
        "zorder": 2,
    }
    if bound.worst_ms is not None:
        axes.plot([left, right], [bound.worst_ms] * 2, **pen)
    if bound.recovery_ms is not None:
        dues = [left + (right - left) * step / 400 for step in range(401)]
        allowed = [max(lasts - due, 0.0) * 1000 + bound.recovery_ms for due in dues]
        axes.plot(dues, allowed, **pen)
    if bound.shut_out is not None:
        axes.plot([bound.shut_out.within_ms / 1000] * 2, [1.0, top], **pen)
    for at, name, side in (
        (find_ejection(fault), "out", "right"),
        (find_readmission(fault), "back", "left"),
    ):
        if at is None:
            continue
        x = at - fault.acted
        axes.plot([x, x], [1.0, top], color=_COLOURS["mark"], linewidth=1.1, zorder=2.5)
        shift = -5 if side == "right" else 5
        axes.annotate(
            name,
            (x, top),
            xytext=(shift, 3),
            textcoords="offset points",
            ha=side,
            va="bottom",
            color=_COLOURS["mark"],
        )


def _draw_messages(
    axes: Axes, kind: str, messages: list[Message], acted: float, top: float
) -> None:
    """One path for all: a point is a line to where it began, which becomes a mark later."""
    if not messages:
        return
    vertices: list[tuple[float, float]] = []
    for message in messages:
        time = message.milliseconds
        height = top / 1.25 if time is None else min(max(time, 1.05), top)
        vertices += [(message.due - acted, height)] * 2
    shape = Shape(vertices, [Shape.MOVETO, Shape.LINETO] * len(messages))
    mark = MARKS[kind]
    patch = PathPatch(
        shape, fill=False, edgecolor=_COLOURS[mark.colour], linewidth=mark.width, capstyle="butt"
    )
    patch.set_gid(f"messages {kind}")
    patch.set_zorder(4 if kind == "bad" else 3)
    axes.add_patch(patch)


def _make_inline(svg: str, prefix: str) -> str:
    """What a page needs of a file of matplotlib's, and no more."""
    width, height = (f"{inches * 72:g}" for inches in _SIZE)
    svg = f'<svg viewBox="0 0 {width} {height}">' + svg[svg.index(">", svg.index("<svg")) + 1 :]
    for pattern, text in (
        (r"<metadata>.*?</metadata>|<style .*?</style>|<!--.*?-->", ""),
        # the page behind it is its ground
        (r'<g id="patch_[12]">\s*<path [^>]*style="fill: #ffffff[^>]*>\s*</g>', ""),
        # type is the page's affair
        (r"font-(?:family|size): [^;]*; |font: [^;]*; ", ""),
        (r' transform="rotate[(]-0 [^"]*"', ""),
    ):
        svg = re.sub(pattern, text, svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="messages ([a-z0-9-]+)">\s*<path d="([^"]*)"([^>]*)/>', _put_marks, svg)
    svg = re.sub(r' (d|x|y)="([^"]*)"', lambda one: f' {one[1]}="{_shorten(one[2])}"', svg)
    svg = _name_anew(svg.replace("xlink:href=", "href="), prefix)
    for stand_in, name in _STAND_INS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    while (bare := re.sub(r"<g/>|<g>\s*</g>|<defs>\s*</defs>", "", svg)) != svg:
        svg = bare
    return re.sub(r"\s*\n\s*", "\n", svg).strip()


def _name_anew(svg: str, prefix: str) -> str:
    """Ids that something refers to become those of this picture; the others go."""
    used = set(re.findall(r'(?:href="|url[(])#([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda one: one[0] if one[1] in used else "", svg)
    svg = re.sub(r' id="', f' id="{prefix}-', svg)
    return re.sub(r'(href="|url[(])#', rf"\1#{prefix}-", svg)


def _put_marks(found: re.Match[str]) -> str:
    mark = MARKS[found[1]]
    points = re.findall(r"M ([0-9.-]+) ([0-9.-]+)", found[2])
    marks = dict.fromkeys(mark.draw(float(x), float(y)) for x, y in points)
    rest = found[3].replace('style="', f'style="stroke-linecap: {mark.cap}; ')
    return f'<g class="messages"><path d="{"".join(marks)}"{rest}/>'


def _say(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _shorten(text: str) -> str:
    return re.sub(r"-?[0-9]+[.][0-9]{2,}", lambda number: _say(float(number[0])), text)


def draw_key(kind: str) -> str:
    """A mark by itself, for the words beside a picture."""
    mark = MARKS[kind]
    return (
        '<svg class="key" viewBox="-6 -6 12 12" aria-hidden="true">'
        f'<path d="{mark.draw(0, 0)}" fill="none" stroke="var(--{mark.colour})" '
        f'stroke-width="{mark.width * 1.4:g}" stroke-linecap="{mark.cap}"/></svg>'
    )
