"""The picture of a forecast: the last candles, the mean path, the cone of sample quantiles.

Knows: matplotlib. Does not know: where the numbers come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

UP, DOWN, INK, CONE, GRID = "#26866b", "#c0392b", "#22303c", "#2f6fb3", "#dfe4e8"
HISTORY_PER_FORECAST = 2
FEWEST_HISTORY, MOST_HISTORY = 60, 160


def draw(
    path: Path,
    history: pd.DataFrame,
    prediction: pd.DataFrame,
    quantiles: Mapping[float, pd.DataFrame],
    title: str,
    subtitle: str,
) -> None:
    """Write the picture to ``path``; the ending says the format (png, svg, pdf). Raises ValueError for others.

    Candles stand side by side without the hours in which nothing is traded.
    """
    matplotlib.use("Agg")
    shown = history.tail(int(np.clip(HISTORY_PER_FORECAST * len(prediction), FEWEST_HISTORY, MOST_HISTORY)))
    figure = Figure(figsize=(12, 6.4), dpi=130, layout="constrained", facecolor="white")
    prices, volumes = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    _candles(prices, shown)
    _cone(prices, shown, prediction, quantiles)
    _volumes(volumes, shown, prediction)
    times = shown.index.append(prediction.index)
    for axes in (prices, volumes):
        axes.axvline(len(shown) - 0.5, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    prices.use_sticky_edges = False
    prices.margins(y=0.08)
    _time_axis(volumes, pd.DatetimeIndex(times))
    prices.set_title(title, loc="left", fontsize=13, fontweight="bold", color=INK, pad=22)
    prices.text(0, 1.02, subtitle, transform=prices.transAxes, fontsize=9, color="#5b6a76")
    prices.set_ylabel("price")
    volumes.set_ylabel("volume")
    prices.legend(loc="upper left", frameon=False, fontsize=9, ncols=4)
    figure.savefig(path)


def _candles(axes: Axes, candles: pd.DataFrame) -> None:
    x = np.arange(len(candles))
    rising = (candles["close"] >= candles["open"]).to_numpy()
    for mask, colour in ((rising, UP), (~rising, DOWN)):
        some = candles[mask]
        axes.vlines(x[mask], some["low"], some["high"], color=colour, linewidth=0.9)
        low, height = np.minimum(some["open"], some["close"]), (some["close"] - some["open"]).abs()
        least = float(candles["high"].max() - candles["low"].min()) * 0.002  # a flat candle is a line, not nothing
        axes.bar(x[mask], np.maximum(height, least), bottom=low, width=0.7, color=colour, linewidth=0)


def _cone(axes: Axes, shown: pd.DataFrame, prediction: pd.DataFrame, quantiles: Mapping[float, pd.DataFrame]) -> None:
    last = float(shown["close"].iloc[-1])
    x = np.arange(len(shown) - 1, len(shown) + len(prediction))  # from the last known close on
    levels = sorted(quantiles)
    for low, high in zip(levels, reversed(levels), strict=True):
        if low >= high:
            break
        edges = [np.concatenate([[last], quantiles[level]["close"]]) for level in (low, high)]
        strength = 0.16 + 0.16 * levels.index(low)
        label = f"{100 * (high - low):.0f} % of sample paths"
        axes.fill_between(x, edges[0], edges[1], color=CONE, alpha=strength, linewidth=0, label=label)
    if 0.5 in quantiles:
        middle = np.concatenate([[last], quantiles[0.5]["close"]])
        axes.plot(x, middle, color=CONE, linewidth=1.4, linestyle="--", label="median close")
    axes.plot(x, np.concatenate([[last], prediction["close"]]), color=INK, linewidth=1.8, label="mean close")


def _volumes(axes: Axes, shown: pd.DataFrame, prediction: pd.DataFrame) -> None:
    if "volume" in shown:
        rising = shown["close"] >= shown["open"]
        axes.bar(np.arange(len(shown)), shown["volume"], width=0.7, color=np.where(rising, UP, DOWN), alpha=0.75)
    x = np.arange(len(shown), len(shown) + len(prediction))
    axes.bar(x, prediction["volume"], width=0.7, color=CONE, alpha=0.55)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(3))


def _time_axis(axes: Axes, times: pd.DatetimeIndex) -> None:
    pattern = "%Y-%m-%d" if (times == times.normalize()).all() else "%m-%d %H:%M"

    def label(x: float, _position: int | None) -> str:
        index = round(x)
        return times[index].strftime(pattern) if 0 <= index < len(times) and abs(x - index) < 1e-6 else ""

    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(label))
    axes.set_xlim(-1, len(times))
