"""An archive by DICOMweb. Files pass as they are, to the byte: the client library would write them anew."""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any
from urllib.parse import urlsplit

from clinkd.pacs.archive import (
    GO_ON,
    ArchiveUnreachable,
    SeriesIncomplete,
    SeriesReference,
    StudyQuery,
    TlsFiles,
    read_count,
)
from clinkd.pacs.instance import STORED_BEFORE, ImageUnusable, check_instance, explain_status, read_instance_header
from clinkd.records import BadInput, is_uid

_PAGE = 500  # series or instances of one answer
_MOST = 100_000  # of all answers to one question
_LOST = 5  # connections one after the other, from which on nothing else would come, either
_UNEXPLAINED = 0x0110  # a failure without a reason
_NO_ROOT = "is the address the root of DICOMweb, as https://HOST/dicom-web?"
_WITH_TLS = "--ca names whom to trust, --certificate and --key who we are; or the address should begin with http://"
_REFUSALS = {
    401: "it wants a token or a password, or refuses that of CLINKD_PACS_TOKEN, CLINKD_PACS_USER, CLINKD_PACS_PASSWORD",
    403: "we may not do this; ask who runs the archive",
    **dict.fromkeys((400, 404, 405), _NO_ROOT),
    406: "it does not send files in the form in which it holds them",
    415: "it does not take DICOM files at this address",
}

Item = Mapping[str, Any]  # a data set as DICOM JSON


class _ImageLost(ArchiveUnreachable):
    """The connection ended while an image came; the next one may come."""


class DicomWebArchive:
    """An archive by QIDO-RS, WADO-RS and STOW-RS. `credentials`: a token, or a user and a password."""

    def __init__(self, address: str, tls: TlsFiles, timeout_seconds: float, credentials: Sequence[str] = ()) -> None:
        self._address, self._tls, self._timeout_seconds = address, tls, timeout_seconds
        self._credentials = credentials
        self._host = urlsplit(address).netloc
        self._answered = False  # whether it has answered anything

    @cached_property
    def _session(self) -> Any:
        from clinkd.pacs.web_session import make_session

        session = make_session()
        session.verify = str(self._tls.ca) if self._tls.ca else True
        if self._tls.certificate and self._tls.key:
            session.cert = (str(self._tls.certificate), str(self._tls.key))
        if len(self._credentials) == 1:
            session.headers["Authorization"] = f"Bearer {self._credentials[0]}"
        elif self._credentials:
            session.auth = (self._credentials[0], self._credentials[1])
        return session

    @cached_property
    def _client(self) -> Any:
        from dicomweb_client.web import DICOMwebClient

        client = DICOMwebClient(
            self._address, session=self._session, timeout=self._timeout_seconds, permissive_uid=True
        )
        client.set_http_retry_params(retry=False)  # the session does
        return client

    def find_series(self, query: StudyQuery) -> list[SeriesReference]:
        keys = {name: value for name, value in query.study_keys().items() if value}
        fields = ["StudyInstanceUID", "AccessionNumber", "PatientID", "StudyDate"]
        found = list[SeriesReference]()
        search = partial(self._client.search_for_studies, fields=fields, search_filters=keys)
        for study in self._search(search, "StudyInstanceUID", query.limit):
            if query.matches_study({name: _read(study, name) for name in fields}):
                found += self._list_series(_read(study, "StudyInstanceUID"), query.modality)
        return found

    def _list_series(self, study: str, modality: str | None) -> Iterator[SeriesReference]:
        filters = {"Modality": modality} if modality else {}
        fields = ["SeriesInstanceUID", "Modality", "NumberOfSeriesRelatedInstances"]
        search = partial(self._client.search_for_series, study, fields=fields, search_filters=filters)
        for item in self._search(search, "SeriesInstanceUID"):
            named = _read(item, "Modality")
            if modality in (None, named):
                number = read_count(_read(item, "NumberOfSeriesRelatedInstances"))
                yield SeriesReference(study, _read(item, "SeriesInstanceUID"), named, number)

    def fetch_series(self, series: SeriesReference, skip: Container[str] = ()) -> Iterator[bytes]:
        search = partial(self._client.search_for_instances, series.study, series.series, fields=["SOPInstanceUID"])
        reasons, unusable, lost = dict[str, str](), set[str](), 0
        for uid in [_read(item, "SOPInstanceUID") for item in self._search(search, "SOPInstanceUID")]:
            if uid in skip:
                continue
            try:
                content = self._fetch_instance(series, uid)
            except _ImageLost as error:
                lost += 1
                if lost == _LOST:
                    raise ArchiveUnreachable(str(error)) from None
                reasons[uid] = str(error)
            except ArchiveUnreachable:
                raise
            except BadInput as error:
                lost = 0
                reasons[uid] = str(error)
                if isinstance(error, ImageUnusable):
                    unusable.add(uid)
            else:
                lost = 0
                yield content
        if reasons:
            raise SeriesIncomplete(reasons, unusable)

    def _fetch_instance(self, series: SeriesReference, uid: str) -> bytes:
        from clinkd.pacs.web_session import FILES

        with self._naming_failures(_ImageLost):
            url = f"{self._address}/studies/{series.study}/series/{series.series}/instances/{uid}"
            response = self._session.get(url, headers={"Accept": FILES}, timeout=self._timeout_seconds)
            response.raise_for_status()
        content = _take_part(response.content, response.headers.get("Content-Type", ""))
        if content is None:
            raise BadInput(f"{self._host}: the image came broken off; {GO_ON}")
        check_instance(content, series, uid)
        return content

    def store(self, content: bytes) -> None:
        uid = read_instance_header(content).instance
        boundary = uuid.uuid4().hex
        body = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode() + content
        body += f"\r\n--{boundary}--\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
        with self._naming_failures():
            url = f"{self._address}/studies"
            response = self._session.post(url, data=body, headers=headers, timeout=self._timeout_seconds)
            reason = _read_failure(response.content)
            if reason is None:
                response.raise_for_status()
        if reason not in (None, STORED_BEFORE):
            raise BadInput(f"{self._host} refuses an object: {explain_status(reason)}")
        if reason is None and uid.encode() not in response.content:  # as the page of a proxy that wants a password
            raise BadInput(f"{self._host} answers, but not that it keeps the object; {_NO_ROOT}")

    def _search(self, search: Callable[..., list[Item]], key: str, most: int | None = None) -> Iterator[Item]:
        """The items of a search, page by page, each once. Some archives leave the number of a page out of account."""
        known = set[str]()
        while True:
            with self._naming_failures():
                page = search(limit=min(_PAGE, most or _PAGE), offset=len(known))
            if not isinstance(page, list) or not all(isinstance(item, dict) for item in page):
                raise BadInput(f"{self._host} answers, but not as DICOMweb; {_NO_ROOT}")
            new = {uid: item for item in page if (uid := _read(item, key)) not in known}
            for uid in new:
                if not is_uid(uid):
                    raise BadInput(f"{self._host} names something without a valid {key}; ask who runs the archive")
            yield from list(new.values())[: None if most is None else most - len(known)]
            known |= new.keys()
            if len(known) > _MOST:
                raise BadInput(f"{self._host} names more than {_MOST:,}; ask for less, by a day or another limit")
            if not new or len(known) >= (most or len(known) + 1):
                return

    def _doubt_scheme(self) -> str:
        """What to try beside, where nothing was ever answered: one side may speak TLS and the other not."""
        other = "http" if self._address.startswith("https:") else "https"
        return "" if self._answered else f", or the address should begin with {other}://"

    @contextlib.contextmanager
    def _naming_failures(self, lost: type[ArchiveUnreachable] = ArchiveUnreachable) -> Iterator[None]:
        """Turn what goes wrong on the way into one line. The texts of library and archive are not repeated: they hold
        the address with its query, and that perhaps a patient's ID. `lost`: raised where a connection ends early."""
        import requests
        from urllib3.exceptions import HTTPError

        from clinkd.pacs.web_session import BUSY, AnswerTooLong

        try:
            yield
            self._answered = True
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            kind = ArchiveUnreachable if status in (401, 403, *BUSY) else BadInput  # nothing else would come, either
            told = f"it is busy; {GO_ON}" if status in BUSY else _REFUSALS.get(status, _explain(status))
            if lost is _ImageLost and status == 404:
                told = "it named the image, but does not have it"
            raise kind(f"{self._host} answers HTTP {status}: {told}") from None
        except AnswerTooLong as error:
            kind = ImageUnusable if lost is _ImageLost else BadInput
            raise kind(f"{self._host} sends more than {error.most / 1e6:,.0f} MB, which is not read") from None
        except requests.exceptions.SSLError as error:
            raise ArchiveUnreachable(
                f"{self._host}: no encrypted connection{_read_doubt(error)}; {_WITH_TLS}"
            ) from None
        except requests.ConnectTimeout:
            raise ArchiveUnreachable(
                f"{self._host}: no answer within {self._timeout_seconds:g} s; check host and port"
            ) from None
        except requests.Timeout:
            raise lost(f"{self._host}: no more came for {self._timeout_seconds:g} s, or too slowly; {GO_ON}") from None
        except requests.TooManyRedirects as error:
            place = _read_place(error.response)
            raise BadInput(f"{self._host} sends us to another address{place}; give that one, if you trust it") from None
        except (requests.RequestException, HTTPError) as error:
            if isinstance(error, requests.JSONDecodeError):
                raise BadInput(f"{self._host} answers, but not as DICOMweb; {_NO_ROOT}") from None
            if "NewConnectionError" in repr(error) or "NameResolution" in repr(error):
                raise ArchiveUnreachable(f"{self._host}: cannot be reached; check host and port") from None
            raise lost(f"{self._host}: the connection was lost; {GO_ON}{self._doubt_scheme()}") from None
        except (ValueError, RecursionError):  # JSON of too many digits or brackets
            raise BadInput(f"{self._host} answers, but not as DICOMweb; {_NO_ROOT}") from None


def _read_doubt(error: BaseException) -> str:
    """Why a certificate is not trusted, as OpenSSL says it; "" where that is not the reason."""
    while reason := getattr(error, "reason", None) or next((a for a in error.args if isinstance(a, Exception)), None):
        if isinstance(reason, str):
            break
        error = reason
    told = str(getattr(error, "verify_message", ""))
    return f" ({told.rstrip('.')})" if told else ""


def _read_place(response: Any) -> str:
    """Scheme and host to which an answer leads, without its path and query: they may hold the ID of a patient."""
    try:
        parts = urlsplit(response.headers.get("Location", ""))
        host, port = parts.hostname, parts.port
    except (AttributeError, ValueError):
        return ""
    place = f"{parts.scheme}://{host}" + (f":{port}" if port else "")
    return f" ({place})" if host and place.isascii() and place.isprintable() else ""


def _explain(status: int) -> str:
    return "a fault of the archive; ask who runs it" if status >= 500 else "it refuses what we ask"


def _read(item: Item, keyword: str) -> str:
    """The first value of an element, "" without one."""
    from pydicom.datadict import tag_for_keyword

    element = item.get(f"{tag_for_keyword(keyword):08X}")
    values = element.get("Value") if isinstance(element, dict) else None
    return str(values[0]).strip() if isinstance(values, list) and values and values[0] is not None else ""


def _take_part(body: bytes, kind: str) -> bytes | None:
    """The one file of an answer of WADO-RS, None if its end is missing."""
    boundary = re.search(r'boundary="?([^";,]+)', kind)
    if boundary is None or not kind.lower().startswith("multipart/related"):
        return body  # against the standard, but done
    marker = f"--{boundary[1].strip()}".encode("latin-1", "replace")
    start = body.find(b"\r\n\r\n", body.find(marker))
    end = body.rfind(b"\r\n" + marker + b"--")
    return body[start + 4 : end] if 0 <= start < end else None


def _read_failure(body: bytes) -> int | None:
    """The reason why an object was not stored, by the answer of STOW-RS; None where it names no failure."""
    try:
        failed = json.loads(body)["00081198"]["Value"][0]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    try:
        return int(failed["00081197"]["Value"][0])
    except (ValueError, KeyError, IndexError, TypeError, OverflowError):
        return _UNEXPLAINED
