"""Generation that compresses as it goes; all of it is in the package ccm."""

from ccm.transformers import generate as generate
