"""Show a stored number as a spreadsheet shows it, by the format of its cell.

A spreadsheet stores 0.25 and shows 25%, stores 7 and shows 007. A person who wrote the sheet means what is shown. The
codes: ECMA-376, part 1, 18.8.30 and 18.8.31. The decimal sign is a point and names of months are English, because the
file does not say in which language it was seen. A code that is not read here makes None: nothing is guessed.
"""

from __future__ import annotations

import datetime
import re
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation

MOST_DIGITS = 15  # that a spreadsheet keeps of a number
_GENERAL = ("", "general", "@")
_BRACKETS = re.compile(r"\[(\$([^\]-]*)(?:-[^\]]*)?|[A-Za-z]+ ?\d*)\]")  # a currency with its language, or a colour
_TOKEN = re.compile(r'"([^"]*)"|\\(.)|[_*].|\[([^\]]*)\]|(General)|([0#?.,]+(?:E[+-]0+)?)|([^"\\\[])', re.I)
_DATE_TOKEN = re.compile(
    r'"([^"]*)"|\\(.)|[_*].|\[([^\]]*)\]|(AM/PM|A/P|y+|m+|d+|h+|s+(?:\.0+)?)|(.)', re.I | re.S
)  # fmt: skip
_NO_LETTER = re.compile(r"[^A-Za-z@/]")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_DATE_SPELLINGS = {  # of the letters of a code; the rest are numbers with a zero before them, where there are two
    "y": "{0:%y}", "yy": "{0:%y}", "mmm": "{month:.3}", "mmmm": "{month}", "mmmmm": "{month:.1}", "ddd": "{day:.3}",
    "dddd": "{day}",
}  # fmt: skip


def show_general(number: Decimal) -> str:
    """A number as a cell without a format shows it: up to 15 digits, 1E-09 if it is small."""
    if number == number.to_integral_value() and abs(number) < Decimal(10) ** MOST_DIGITS:
        return str(int(number))
    text = f"{float(number):.{MOST_DIGITS}g}"
    return text.upper() if "e" in text else text


def show_number(number: Decimal, code: str) -> str | None:
    """A number by a format of numbers: percent, thousands, leading zeros, text around it. None: not such a code."""
    sections = re.split(r';(?=(?:[^"]*"[^"]*")*[^"]*$)', code)
    place = 1 if number < 0 and len(sections) > 1 else 2 if number == 0 and len(sections) > 2 else 0
    section = sections[place].strip()
    if section.casefold() in _GENERAL[1:] or not code:
        return show_general(number)
    if any(not _BRACKETS.fullmatch(f"[{b}]") for b in re.findall(r"\[([^\]]*)\]", section)):
        return None  # a condition, or digits of another script
    shown = _show_section(abs(number), section)
    if shown is None or number >= 0 or place == 1 or not re.search("[1-9]", shown):
        return shown
    return f"-{shown}"


def _show_section(number: Decimal, section: str) -> str | None:
    tokens: list[tuple[bool, str]] = []  # whether it is a pattern of digits, and its text
    for match in _TOKEN.finditer(section):
        quoted, escaped, bracket, general, pattern, sign = match.groups()
        if sign and not _NO_LETTER.fullmatch(sign):
            return None
        if general:
            tokens.append((False, show_general(number)))
        elif pattern and re.search("[0#?]", pattern):
            tokens.append((True, pattern))
        else:
            currency = _BRACKETS.fullmatch(f"[{bracket}]") if bracket is not None else None
            tokens.append((False, (currency and currency[2]) or quoted or escaped or pattern or sign or ""))
    patterns = [text for is_pattern, text in tokens if is_pattern]
    percents = sum(text.count("%") for is_pattern, text in tokens if not is_pattern and text == "%")
    digits = _fill_patterns(number.scaleb(2 * percents), patterns)
    filled = iter(digits or ())
    shown = "".join(next(filled, "") if is_pattern else text for is_pattern, text in tokens).strip()
    return None if digits is None else shown or None  # a cell that shows nothing hides its number


def _fill_patterns(number: Decimal, patterns: list[str]) -> list[str] | None:
    """The digits of a number in the patterns, such as 001 and 23 in `000` and `00`."""
    *before, last = patterns or [""]
    if not last:
        return []
    if "E" in last.upper():
        return None if before else _fill_scientific(number, last.upper())
    whole, point, fraction = last.partition(".")
    if any("." in p or "," in p for p in before) or "." in fraction or "," in fraction:
        return None
    thousands = len(whole) - len(whole.rstrip(","))
    grouped, whole = "," in whole.rstrip(","), whole.replace(",", "")
    try:
        rounded = number.scaleb(-3 * thousands).quantize(Decimal(1).scaleb(-len(fraction)), ROUND_HALF_UP)
    except InvalidOperation:
        return None
    digits, _, decimals = f"{rounded:f}".partition(".")
    digits = digits.lstrip("0")
    filled: list[str] = []
    for pattern in reversed([*before, whole]):
        least = len(pattern[pattern.find("0") :]) if "0" in pattern else 0
        taken = len(pattern) if len(filled) < len(before) else len(digits)  # the first pattern has all the rest
        part, digits = (digits[-taken:], digits[:-taken]) if taken else ("", digits)
        filled.insert(0, part.zfill(least))
    if grouped and not before:
        filled[0] = re.sub(r"(?<=\d)(?=(\d{3})+$)", ",", filled[0])
    kept = decimals[: len(fraction.rstrip("#?"))] + decimals[len(fraction.rstrip("#?")) :].rstrip("0")
    filled[-1] += point + kept
    return filled


def _fill_scientific(number: Decimal, pattern: str) -> list[str] | None:
    mantissa, sign, power = re.split(r"E([+-])", pattern)
    if not re.fullmatch(r"0(\.0+)?", mantissa):
        return None
    text = f"{number:.{max(0, len(mantissa) - 2)}E}"
    shown, _, exponent = text.partition("E")
    minus = "-" if exponent.startswith("-") else "+" if sign == "+" else ""
    return [f"{shown}E{minus}{exponent.lstrip('+-').zfill(len(power))}"]


def show_date(moment: datetime.datetime, code: str) -> tuple[str | None, bool]:
    """A date or time by its format, and whether that shows all of it: year, month and day, or hours.

    None: the code leaves it to the computer how a date is shown, or to a language that is not English.
    """
    section = code.split(";")[0]
    letters = [(m[4] or "").casefold() for m in _DATE_TOKEN.finditer(section)]
    has_pm = any("/" in word for word in letters)
    parts: list[str] = []
    last = ""  # the unit before: m is minutes behind hours, and before seconds
    for number, match in enumerate(_DATE_TOKEN.finditer(section)):
        quoted, escaped, bracket, _, sign = match.groups()
        word = letters[number]
        if bracket is not None and not re.fullmatch(r"\$-(0|[0-9A-F]*09)|[A-Z][a-z]+", bracket):
            return None, True  # elapsed hours, the system's own format, or months in another language
        if not word:
            parts.append(quoted or escaped or sign or "")
            continue
        following = next((w[0] for w in letters[number + 1 :] if w), "")
        unit = "n" if word in ("m", "mm") and (last == "h" or following == "s") else word[0]
        parts.append(_show_part(moment, word, unit, has_pm))
        last = unit
    units = {word[0] for word in letters if word}
    return "".join(parts).strip(), units >= {"y", "m", "d"} or (not units & {"y", "d"} and bool(units & {"h", "s"}))


def _show_part(moment: datetime.datetime, word: str, unit: str, has_pm: bool) -> str:
    if unit in "nhs" and "/" not in word:
        whole, _, fraction = word.partition(".")
        hour = (moment.hour % 12 or 12) if has_pm else moment.hour
        value = {"n": moment.minute, "h": hour, "s": moment.second}[unit]
        digits = f".{moment.microsecond:06}"[: len(fraction) + 1] if fraction else ""
        return f"{value:0{min(len(whole), 2)}}{digits}"
    if unit in "md" and len(word) < 3:
        return f"{moment.month if unit == 'm' else moment.day:0{len(word)}}"
    spelling = _DATE_SPELLINGS.get(word, "{0:%Y}" if unit == "y" else "{0:%p}")
    return spelling.format(moment, month=_MONTHS[moment.month - 1], day=_DAYS[moment.weekday()])
