"""Small SVG charts, written by hand: what waits, and how many workers are asked for."""

from collections.abc import Mapping, Sequence
from pathlib import Path

Line = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 720, 120, 44, 24, 34
_COLOURS = ("#1f6feb", "#d1242f", "#57606a")


def write(path: Path, title: str, panels: Mapping[str, Mapping[str, Line]], length: float) -> None:
    """One panel below the other, each with named lines over the same `length` seconds."""
    height = _TOP + len(panels) * (_HEIGHT + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 12}" height="{height}" '
        f'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LEFT}" y="15" font-weight="bold">{_text(title)}</text>',
    ]
    for number, (name, lines) in enumerate(panels.items()):
        parts += _panel(name, lines, length, _TOP + number * (_HEIGHT + _GAP))
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


def steps(points: Line, length: float) -> Line:
    """A line that keeps each value until the next."""
    found: list[tuple[float, float]] = []
    for time, value in points:
        if found:
            found.append((time, found[-1][1]))
        found.append((time, value))
    return [*found, (length, found[-1][1])] if found else []


def _panel(name: str, lines: Mapping[str, Line], length: float, top: int) -> list[str]:
    most = max((value for line in lines.values() for _, value in line), default=0.0) or 1.0
    bottom = top + _HEIGHT
    parts = [
        f'<path d="M{_LEFT} {top}V{bottom}H{_LEFT + _WIDTH}" fill="none" stroke="#afb8c1"/>',
        f'<text x="{_LEFT - 5}" y="{top + 9}" text-anchor="end">{most:.0f}</text>',
        f'<text x="{_LEFT - 5}" y="{bottom}" text-anchor="end">0</text>',
        f'<text x="{_LEFT}" y="{bottom + 14}">0 s</text>',
        f'<text x="{_LEFT + _WIDTH}" y="{bottom + 14}" text-anchor="end">{length:.0f} s</text>',
        f'<text x="{_LEFT + 6}" y="{top + 9}" fill="#57606a">{_text(name)}</text>',
    ]
    for number, (label, line) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = " ".join(
            f"{_LEFT + time / length * _WIDTH:.1f},{bottom - value / most * _HEIGHT:.1f}" for time, value in line
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
        x = _LEFT + _WIDTH - 90 * (len(lines) - number)
        parts.append(f'<text x="{x}" y="{top + 9}" fill="{colour}">{_text(label)}</text>')
    return parts


def _text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
