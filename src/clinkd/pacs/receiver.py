"""Receive images that others send by the DICOM network (C-STORE), and answer C-ECHO.

Success is answered only when the image is kept. All that a peer sends is counted before it is held: the bytes of a
PDU, of a command, of an image and of all images at once, connections, and the time that each byte may take.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from clinkd.own_address import explain_bind
from clinkd.pacs.addresses import ReceiverAddress, check_title, plain_address
from clinkd.pacs.instance import StoreRefusal, StoreStatus, demand_extra
from clinkd.pacs.limits import ReceiverLimits
from clinkd.records import BadInput

if TYPE_CHECKING:
    from pydicom import Dataset

_STANDARD = "1.2.840.10008."  # UIDs of the standard begin so; others are a vendor's own
_STORAGE = f"{_STANDARD}5.1.4.1.1."  # those of the classes of stored objects
_STORAGE_SERVICE = f"{_STANDARD}4.2"
_DEFLATED = (f"{_STANDARD}1.2.1.99", f"{_STANDARD}1.2.4.95", f"{_STANDARD}1.2.4.205")  # could inflate to any size
_SYNTAXES = [  # in which images are read: implicit, explicit, big-endian, JPEG, lossless JPEG, JPEG-LS, JPEG 2000, RLE
    f"{_STANDARD}1.2{rest}"
    for rest in ("", ".1", ".2", ".4.50", ".4.51", ".4.57", ".4.70", ".4.80", ".4.81", ".4.90", ".4.91", ".5")
]
_COMMENT = 64  # characters of an error comment (VR LO)


class Receiver:
    """Listens from `start` to `stop`. `take` gets each object as a DICOM file, in several threads, and keeps it: when
    it returns, success is answered. It raises StoreRefusal, or BadInput for a file that it cannot use.

    Objects of every class are taken, a vendor's own ones, too: an archive sends a study whole, or not at all.

    `outcomes` counts the replies by their status.
    """

    def __init__(
        self,
        address: ReceiverAddress,
        take: Callable[[bytes], object],
        limits: ReceiverLimits | None = None,
        tell: Callable[[str], object] = lambda line: None,
    ) -> None:
        """`tell` gets a line for each peer that is turned away.

        Raises BadInput where the extra `pacs` is missing, and as `ReceiverAddress.demand_safe`.
        """
        address.demand_safe()
        check_title(address.title)
        self.address, self.limits, self.outcomes = address, limits or ReceiverLimits(), Counter[StoreStatus]()
        self._take, self._server, self._lock = take, cast(Any, None), threading.Lock()
        self._tell = tell
        demand_extra()

    def bind(self) -> int:
        """Take the port, where peers wait until `start`; the port. Raises BadInput where it is taken, or a file of TLS
        cannot be used."""
        from pynetdicom import AE, evt

        from clinkd.pacs.connection import BoundedServer
        from clinkd.pacs.dimse import make_tls_context

        limits, address = self.limits, self.address
        entity = AE(address.title)
        entity.require_called_aet = True
        entity.acse_timeout, entity.network_timeout = limits.stall_seconds, limits.idle_seconds
        entity.dimse_timeout = limits.idle_seconds
        entity.add_supported_context(f"{_STANDARD}1.1")  # verification
        handlers = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_ECHO, lambda event: StoreStatus.SUCCESS),
            (evt.EVT_REQUESTED, self._reject_strangers),
            (evt.EVT_REQUESTED, _offer_storage),
            (evt.EVT_REJECTED, self._tell_other_title),
            (evt.EVT_SOP_COMMON, _declare_storage),
        ]
        context = make_tls_context(address.tls, serves=True) if address.tls else None
        allowed = {peer.address for peer in address.allowed}
        try:
            self._server = BoundedServer.open(
                entity, (address.host, address.port), limits, allowed, tell_away=self._tell_away,
                ssl_context=context, evt_handlers=handlers,
            )  # fmt: skip
        except (OSError, OverflowError) as error:
            raise BadInput(explain_bind(error, address.host, address.port)) from None
        return int(self._server.server_address[1])

    def start(self) -> int:
        """Listen; the port. Raises as `bind`."""
        if self._server is None:
            self.bind()
        self._server.serve()
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Listen no more, and end what is open; an image that is being kept is kept."""
        if self._server is not None:
            self._server.shutdown()
        self._server = None

    def _reject_strangers(self, event: Any) -> None:
        """Reject an association whose title is not allowed for its address."""
        if self.address.allowed:
            requestor = event.assoc.requestor
            peer = (plain_address(requestor.address), (requestor.primitive.calling_ae_title or "").strip())
            if peer not in self.address.allowed:
                event.assoc.acse.send_reject(0x01, 0x01, 0x03)  # permanent: calling title not recognised
                event.assoc.kill()
                self._tell_away(requestor.address, "its own title is not the one of --allow")

    def _tell_other_title(self, event: Any) -> None:
        self._tell_away(event.assoc.requestor.address, f"it calls another title than {self.address.title}")

    def _tell_away(self, address: str, why: str) -> None:
        """Tell that a peer was turned away, by its address alone: in a title it may write what it likes."""
        self._tell(f"turned away {plain_address(address)}: {why}")

    def _store(self, event: Any) -> Dataset:
        from clinkd.pacs.connection import held_object

        status, why = StoreStatus.SUCCESS, ""
        try:
            with held_object(event) as content:
                self._take(content)
        except StoreRefusal as refusal:
            status, why = refusal.status, str(refusal)
        except BadInput as error:
            status, why = StoreStatus.CANNOT_UNDERSTAND, str(error)
        except Exception as error:  # a fault of ours; its words may be a patient's
            status, why = StoreStatus.OUT_OF_RESOURCES, f"a fault of the receiver ({type(error).__name__})"
        with self._lock:
            self.outcomes[status] += 1
        return _make_status(status, why)


def _make_status(status: StoreStatus, why: str) -> Dataset:
    from pydicom import Dataset

    reply = Dataset()
    reply.Status = int(status)
    if why:
        reply.ErrorComment = why.encode("ascii", "replace").decode().replace("\\", "/")[:_COMMENT]
    return reply


def _list_proposed(event: Any) -> dict[str, list[str]]:
    """The classes of stored objects that a peer proposes, with their transfer syntaxes."""
    proposed: dict[str, list[str]] = {}
    for context in event.assoc.requestor.primitive.presentation_context_definition_list:
        name = str(context.abstract_syntax)
        if name.startswith(_STORAGE) or not name.startswith(_STANDARD):
            proposed.setdefault(name, []).extend(map(str, context.transfer_syntax))
    return proposed


def _offer_storage(event: Any) -> None:
    """Accept every class that a peer proposes to store. Syntaxes in which images are read are preferred; objects in
    others, too, must arrive to be told that nobody asks about them."""
    from pynetdicom import build_context

    contexts = event.assoc.acceptor.supported_contexts
    for name, proposed in _list_proposed(event).items():
        others = [syntax for syntax in proposed if syntax.startswith(f"{_STANDARD}1.2") and syntax not in _DEFLATED]
        contexts.append(build_context(name, [*_SYNTAXES, *others]))
    event.assoc.acceptor.supported_contexts = contexts


def _declare_storage(event: Any) -> dict[Any, Any]:
    """That a vendor's classes are stored objects, which pynetdicom cannot know."""
    from pynetdicom.pdu_primitives import SOPClassCommonExtendedNegotiation

    declared = {}
    for name in _list_proposed(event):
        declared[name] = item = SOPClassCommonExtendedNegotiation()
        item.sop_class_uid, item.service_class_uid = name, _STORAGE_SERVICE
    return declared
