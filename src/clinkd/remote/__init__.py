"""Conversations with an OpenAI-compatible endpoint: what may leave, what it costs, and what comes back."""

from clinkd.remote.chat import Chat, Message, Reply, encode_body, make_client, user_message
from clinkd.remote.journal import NANO, Journal, Ledger, OverBudget
from clinkd.remote.scrub import Masked, PlainPage, Scrubber, common_words

__all__ = [
    "NANO",
    "Chat",
    "Journal",
    "Ledger",
    "Masked",
    "Message",
    "OverBudget",
    "PlainPage",
    "Reply",
    "Scrubber",
    "common_words",
    "encode_body",
    "make_client",
    "user_message",
]
