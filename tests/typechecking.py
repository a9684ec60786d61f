"""How the tests check the types of signatures: an int may stand where a float is wanted, as everywhere in Python."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
