"""Provides what scripts import to read text."""

from train.data.text import Corpus, TextSource, encode_documents, load_corpus, read_documents

__all__ = ["Corpus", "TextSource", "encode_documents", "load_corpus", "read_documents"]
