"""What a tool, a call, a message and a sample are; reading, comparing and rendering them. No JAX."""

from looptool_jax.toolcall.acebench_match import AceMode, AceTarget, match_acebench
from looptool_jax.toolcall.bfcl_match import BfclCall, BfclMode, BfclTarget, match_bfcl, match_bfcl_calls
from looptool_jax.toolcall.chat import ChatError, ChatFormat, ChatTokenizer, check_format, get_format, read_tokenizer
from looptool_jax.toolcall.difference import Difference, differences
from looptool_jax.toolcall.matcher import Match, MatchMode, equal_calls, match, names_parameter
from looptool_jax.toolcall.parser import FailureKind, Lenient, Parsed, ParseFailure, parse, parse_lenient
from looptool_jax.toolcall.records import Call, Message, Origin, RecordError, Sample, Target, Tool
from looptool_jax.toolcall.schema import SchemaError, check_call, normalise_tool

__all__ = [
    "AceMode",
    "AceTarget",
    "BfclCall",
    "BfclMode",
    "BfclTarget",
    "Call",
    "ChatError",
    "ChatFormat",
    "ChatTokenizer",
    "Difference",
    "FailureKind",
    "Lenient",
    "Match",
    "MatchMode",
    "Message",
    "Origin",
    "ParseFailure",
    "Parsed",
    "RecordError",
    "Sample",
    "SchemaError",
    "Target",
    "Tool",
    "check_call",
    "check_format",
    "differences",
    "equal_calls",
    "get_format",
    "match",
    "match_acebench",
    "match_bfcl",
    "match_bfcl_calls",
    "names_parameter",
    "normalise_tool",
    "parse",
    "parse_lenient",
    "read_tokenizer",
]
