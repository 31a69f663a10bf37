"""Connections of the DICOM network, bounded: pynetdicom itself holds whatever a peer says that it will send.

Imported only where pynetdicom is installed.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Container, Iterator
from io import BytesIO
from socketserver import BaseServer
from typing import TYPE_CHECKING, Any

from pynetdicom.ae import ApplicationEntity
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_CANCEL_RQ, C_ECHO_RQ, C_STORE_RQ, DIMSEMessage
from pynetdicom.fsm import StateMachine
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from clinkd.pacs.addresses import plain_address
from clinkd.pacs.instance import StoreRefusal, StoreStatus

if TYPE_CHECKING:
    from pynetdicom.association import Association

    from clinkd.pacs.limits import ReceiverLimits

_COMMAND_BYTES = 1 << 16
_PENDING = 2  # requests that wait on one connection; nobody may send the next before the reply
_COMMANDS = (C_STORE_RQ, C_ECHO_RQ, C_CANCEL_RQ)
_INVALID = "Evt19"  # of PS3.8, 9.2: what came is not valid; the connection is aborted


class OwnEntity(ApplicationEntity):
    """Connects by threads that do not keep the program from its end, as pynetdicom's do while an archive is silent."""

    def _create_socket(self, assoc: Association, *given: Any) -> AssociationSocket:
        assoc.dul.daemon = True
        return super()._create_socket(assoc, *given)


class BoundedServer(ThreadedAssociationServer):
    """Connections of the addresses in `allowed`, or of all if it is empty, each within `limits`."""

    daemon_threads = True

    def __init__(
        self,
        *args: Any,
        limits: ReceiverLimits,
        allowed: Container[str] = (),
        tell_away: Callable[[str, str], object] = lambda address, why: None,
        **kwargs: Any,
    ) -> None:
        """`tell_away` gets the address of each peer that is turned away, and why."""
        self.limits, self.allowed, self.tell_away, self._served = limits, allowed, tell_away, False
        kwargs["request_handler"] = BoundedHandler
        super().__init__(*args, **kwargs)

    @classmethod
    def open(
        cls,
        entity: ApplicationEntity,
        address: tuple[str, int],
        limits: ReceiverLimits,
        allowed: Container[str] = (),
        **options: Any,
    ) -> BoundedServer:
        """Take the port, so that peers can connect; they are answered from `serve` on. Raises OSError where it is
        taken. `options`: those of `AE.make_server`, and `tell_away`."""
        entity.maximum_pdu_size = limits.pdu_bytes >> 1
        entity.maximum_associations = limits.connections
        server = entity.make_server(address, server_class=cls, limits=limits, allowed=allowed, **options)
        assert isinstance(server, cls)
        return server

    def serve(self) -> None:
        """Answer, in threads of their own, until `shutdown`."""
        self._served = True
        threading.Thread(target=self.serve_forever, args=(0.1,), name="receiver", daemon=True).start()

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection. A handshake of TLS is left to its own thread: here, a silent peer would keep out all
        others."""
        assert self.socket is not None
        client, address = self.socket.accept()
        if self.ssl_context:
            client = self.ssl_context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        return client, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing is printed of a connection that ends in an error."""

    def shutdown(self) -> None:
        """Listen no more, and end what is open; an object that is being kept is kept."""
        if self._served:
            BaseServer.shutdown(self)  # pynetdicom's wants to be in a list that only its own way of starting fills
        self.server_close()
        for association in self.active_associations:
            association.abort()

    @property
    def held_bytes(self) -> int:
        """Bytes of images in memory."""
        return sum(getattr(association.dimse, "held", 0) for association in self.active_associations)


class BoundedHandler(RequestHandler):
    """Opens an association on a connection."""

    server: BoundedServer

    def handle(self) -> None:
        limits, client = self.server.limits, self.request
        unknown = self.server.allowed and plain_address(self.client_address[0]) not in self.server.allowed
        if unknown or len(self.server.active_associations) > limits.connections:
            why = "its address is not one of --allow" if unknown else f"{limits.connections} connections are open"
            self.server.tell_away(self.client_address[0], why)
            self.server.shutdown_request(client)
            return
        client.settimeout(limits.stall_seconds)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # without it a reply of two parts takes 40 ms
        if self.server.ssl_context:
            try:
                client.do_handshake()
            except OSError:
                self.server.tell_away(self.client_address[0], "not by TLS, or without a certificate that is trusted")
                raise
        super().handle()

    def _create_association(self) -> Association:
        association = super()._create_association()
        association.dimse = BoundedDimse(association, self.server)
        association.dul.state_machine = CarefulStates(association.dul)
        association.dul.daemon = True
        bounded = BoundedSocket(association, self.server.limits, self.request)
        association.dul.event_queue.get(block=False)  # the socket before has announced the connection, too
        association.dul.socket = bounded
        return association


class BoundedSocket(AssociationSocket):
    """Reads no PDU that is longer than allowed, or that comes too slowly."""

    def __init__(self, association: Association, limits: ReceiverLimits, client: socket.socket) -> None:
        super().__init__(association, client_socket=client)
        self.limits = limits

    def recv(self, nr_bytes: int) -> bytearray:
        """Raises OSError beyond a limit, which ends the connection."""
        if nr_bytes > self.limits.pdu_bytes:
            raise OSError("a PDU longer than allowed")
        received, client = bytearray(), self.socket
        end = time.monotonic() + self.limits.stall_seconds + nr_bytes / self.limits.bytes_per_second
        while len(received) < nr_bytes and client is not None:
            if time.monotonic() > end:
                raise TimeoutError
            part = client.recv(nr_bytes - len(received))
            if not part:
                break
            received += part
        return received


class BoundedDimse(DIMSEServiceProvider):
    """Counts the bytes of commands and images. An image beyond a limit is read to its end but not held; its request is
    in `refused`, by its number, with the reason."""

    def __init__(self, association: Association, server: BoundedServer) -> None:
        super().__init__(association)
        self.server, self.limits = server, server.limits
        self.held = 0  # bytes of images, until they are kept or refused
        self.refused: dict[int, str] = {}
        self._command, self._image = 0, 0  # bytes of the message that comes

    def receive_primitive(self, primitive: P_DATA) -> None:
        """As pynetdicom's, for what is served; whatever else comes, or is broken, ends the connection."""
        try:
            for context, fragment in primitive.presentation_data_value_list:
                if self.msg_queue.qsize() >= _PENDING:
                    raise ValueError("requests without waiting for replies")
                self._take_fragment(context, fragment)
        except Exception:
            self.dul.event_queue.put(_INVALID)

    def _take_fragment(self, context: int, fragment: bytes) -> None:
        if self.message is None:
            self.message, self._command, self._image = DIMSEMessage(), 0, 0
        if fragment[0] & 1:
            self._command += len(fragment)
            if self._command > _COMMAND_BYTES:
                raise ValueError("a command longer than allowed")
        else:
            fragment = self._limit_image(self.message, fragment)
        part = P_DATA()
        part.presentation_data_value_list = [[context, fragment]]  # type: ignore[list-item]  # it demands lists
        if not self.message.decode_msg(part, self.assoc):
            return
        message, self.message = self.message, None
        if not isinstance(message, _COMMANDS) or message.context_id is None:
            raise ValueError("a request that is not served")
        request: Any = message.message_to_primitive()
        if not isinstance(message, C_CANCEL_RQ):
            if isinstance(message, C_STORE_RQ) and request.DataSet is None:
                request.DataSet = BytesIO()  # to be refused with a status
            if not request.is_valid_request:
                raise ValueError("a request that lacks what it needs")
            self.msg_queue.put((message.context_id, request))

    def _limit_image(self, message: DIMSEMessage, fragment: bytes) -> bytes:
        """The part of a fragment that is held."""
        if not isinstance(message, C_STORE_RQ):
            raise ValueError("data with a request that has none")
        number, size = int(message.command_set.MessageID), len(fragment) - 1
        if number not in self.refused and (reason := self._find_excess(size)):
            self.refused[number] = reason
            self.held -= self._image
            message.data_set = BytesIO()
        if number in self.refused:
            return fragment[:1]
        self._image += size
        self.held += size
        return fragment

    def _find_excess(self, size: int) -> str:
        if self._image + size > self.limits.image_bytes:
            return f"an image of more than {self.limits.image_bytes:,} bytes"
        if self.server.held_bytes + size > self.limits.held_bytes:
            return "too many images come at once"
        return ""


class CarefulStates(StateMachine):
    """An event that fits no state ends the connection, and not with a traceback on the screen."""

    def do_action(self, event: str) -> None:
        try:
            super().do_action(event)
        except Exception:
            self.dul.assoc._kill = True
            self.dul.assoc.is_established = False
            self.dul.kill_dul()
            if self.dul.socket:
                self.dul.socket.close()


@contextlib.contextmanager
def held_object(event: Any) -> Iterator[bytes]:
    """The DICOM file that a request (C-STORE) brings, which counts as held until the block ends. Raises StoreRefusal
    where it is beyond a limit, or none is there."""
    dimse, request = event.assoc.dimse, event.request
    size = len(request.DataSet.getvalue()) if request.DataSet else 0
    try:
        if reason := dimse.refused.pop(request.MessageID, None):
            raise StoreRefusal(StoreStatus.OUT_OF_RESOURCES, reason)
        if not size:
            raise StoreRefusal(StoreStatus.CANNOT_UNDERSTAND, "there is no data set")
        yield event.encoded_dataset()
    finally:
        dimse.held -= size
