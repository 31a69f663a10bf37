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

from clinkd.pacs.archive import GO_ON, ArchiveUnreachable, SeriesReference, StudyQuery, TlsFiles
from clinkd.pacs.instance import explain_status, read_instance_header
from clinkd.records import BadInput, is_uid

_PAGE = 500  # series or instances of one answer
_ATTEMPTS = 3
_BUSY = (429, 503, 504)
_NO_ROOT = "is the address the root of DICOMweb, as https://HOST/dicom-web?"
_FILES = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_WITH_TLS = "--ca names whom to trust, --certificate and --key who we are; or the address should begin with http://"
_REFUSALS = {
    401: "it wants a token or a password, or refuses that of CLINKD_PACS_TOKEN, CLINKD_PACS_USER, CLINKD_PACS_PASSWORD",
    403: "we may not do this; ask who runs the archive",
    **dict.fromkeys((400, 404, 405), _NO_ROOT),
    406: "it does not send files in the form in which it holds them",
    415: "it does not take DICOM files at this address",
}

Item = Mapping[str, Any]  # a data set as DICOM JSON


class DicomWebArchive:
    """An archive by QIDO-RS, WADO-RS and STOW-RS. `credentials`: a token, or a user and a password."""

    def __init__(self, address: str, tls: TlsFiles, timeout_seconds: float, credentials: Sequence[str] = ()) -> None:
        self._address, self._tls, self._timeout_seconds = address, tls, timeout_seconds
        self._credentials = credentials
        self._host = urlsplit(address).netloc

    @cached_property
    def _session(self) -> Any:
        from requests import Session
        from requests.adapters import HTTPAdapter
        from urllib3 import Retry

        session = Session()
        session.trust_env = False  # no proxy, and no password of a file of the user's
        session.max_redirects = 0  # a query may hold the ID of a patient
        session.verify = str(self._tls.ca) if self._tls.ca else True
        if self._tls.certificate and self._tls.key:
            session.cert = (str(self._tls.certificate), str(self._tls.key))
        if len(self._credentials) == 1:
            session.headers["Authorization"] = f"Bearer {self._credentials[0]}"
        elif self._credentials:
            session.auth = (self._credentials[0], self._credentials[1])
        # once more where an archive has closed a connection that was idle; to store an object twice does no harm
        again = Retry(
            _ATTEMPTS, connect=0, read=1, other=0, redirect=0, status_forcelist=_BUSY, allowed_methods=None,
            backoff_factor=0.5, raise_on_status=False, respect_retry_after_header=False,
        )  # fmt: skip
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=again))
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
                count = _read(item, "NumberOfSeriesRelatedInstances")
                uid = _read(item, "SeriesInstanceUID")
                yield SeriesReference(study, uid, named, int(count) if count.isdigit() else None)

    def fetch_series(self, series: SeriesReference, skip: Container[str] = ()) -> Iterator[bytes]:
        search = partial(self._client.search_for_instances, series.study, series.series, fields=["SOPInstanceUID"])
        failures = list[str]()
        for uid in [_read(item, "SOPInstanceUID") for item in self._search(search, "SOPInstanceUID")]:
            if uid in skip:
                continue
            try:
                content = self._fetch_instance(f"{series.study}/series/{series.series}/instances/{uid}")
            except ArchiveUnreachable:
                raise
            except BadInput as error:
                failures.append(str(error))
                continue
            yield content
        if failures:
            raise BadInput(f"{len(failures)} images of a series did not come: {failures[0]}")

    def _fetch_instance(self, path: str) -> bytes:
        with self._naming_failures():
            url = f"{self._address}/studies/{path}"
            response = self._session.get(url, headers={"Accept": _FILES}, timeout=self._timeout_seconds)
            response.raise_for_status()
            content = _take_part(response.content, response.headers.get("Content-Type", ""))
        if content is None:
            raise ArchiveUnreachable(f"{self._host}: an image came broken off; {GO_ON}")
        return content

    def store(self, content: bytes) -> None:
        read_instance_header(content)
        boundary = uuid.uuid4().hex
        body = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode() + content
        body += f"\r\n--{boundary}--\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
        with self._naming_failures():
            url = f"{self._address}/studies"
            response = self._session.post(url, data=body, headers=headers, timeout=self._timeout_seconds)
            if failure := _read_failure(response.content):
                raise BadInput(f"{self._host} refuses an object: {explain_status(failure)}")
            response.raise_for_status()

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
            if not new or len(known) >= (most or len(known) + 1):
                return

    @contextlib.contextmanager
    def _naming_failures(self) -> Iterator[None]:
        """Turn what goes wrong on the way into one line. The texts of library and archive are not repeated: they hold
        the address with its query, and that perhaps a patient's ID."""
        import requests

        try:
            yield
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            kind = ArchiveUnreachable if status in (401, 403, *_BUSY) else BadInput  # nothing else would come, either
            raise kind(f"{self._host} answers HTTP {status}: {_REFUSALS.get(status, _explain(status))}") from None
        except requests.exceptions.SSLError:
            raise ArchiveUnreachable(f"{self._host}: no encrypted connection; {_WITH_TLS}") from None
        except requests.ConnectTimeout:
            raise ArchiveUnreachable(
                f"{self._host}: no answer within {self._timeout_seconds:g} s; check host and port"
            ) from None
        except requests.Timeout:
            raise ArchiveUnreachable(f"{self._host}: no more came for {self._timeout_seconds:g} s; {GO_ON}") from None
        except requests.TooManyRedirects:
            raise BadInput(f"{self._host} sends us to another address; give that one, if you trust it") from None
        except (requests.JSONDecodeError, json.JSONDecodeError):
            raise BadInput(f"{self._host} answers, but not as DICOMweb; {_NO_ROOT}") from None
        except requests.RequestException as error:
            refused = "NewConnectionError" in repr(error) or "NameResolution" in repr(error)
            way_out = "check host and port" if refused else GO_ON
            what = "cannot be reached" if refused else "the connection was lost"
            raise ArchiveUnreachable(f"{self._host}: {what}; {way_out}") from None


def _explain(status: int) -> str:
    if status in _BUSY:
        return f"it is busy; {GO_ON}"
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
    marker = f"--{boundary[1].strip()}".encode()
    start = body.find(b"\r\n\r\n", body.find(marker))
    end = body.rfind(b"\r\n" + marker + b"--")
    return body[start + 4 : end] if 0 <= start < end else None


def _read_failure(body: bytes) -> int:
    """The reason why an object was not stored, by the answer of STOW-RS; 0 where it was."""
    try:
        answer = json.loads(body)
        failed = answer["00081198"]["Value"][0]
        return int(failed["00081197"]["Value"][0])
    except (ValueError, KeyError, IndexError, TypeError):
        return 0
