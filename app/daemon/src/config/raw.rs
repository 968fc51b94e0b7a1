//! The configuration as it is written, before anything was checked but its form.

use std::{fmt, time::Duration};

use plimsoll_units::{Bytes, Ppm};
use serde::{Deserialize, Deserializer, de};

use super::policy::RawPolicy;
use super::text::{parse_duration, parse_share};

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct RawConfig {
    pub(crate) tick: Option<Millis>,
    pub(crate) forget_after: Option<Millis>,
    pub(crate) start_timeout: Option<Millis>,
    pub(crate) host: RawHost,
    pub(crate) journal: RawJournal,
    pub(crate) policy: RawPolicy,
}

/// `[host]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct RawHost {
    pub(crate) budget: Option<AutoSize>,
    pub(crate) reserve: Option<AutoSize>,
    pub(crate) low: Option<AutoSize>,
    pub(crate) cgroup: Option<String>,
    pub(crate) overhead_qemu: Option<Size>,
    pub(crate) overhead_uml: Option<Size>,
}

/// `[journal]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct RawJournal {
    pub(crate) dir: Option<String>,
    pub(crate) max_size: Option<Size>,
    pub(crate) keep: Option<u32>,
}

/// A size with its unit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size(pub(crate) Bytes);

/// `auto`, or a size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AutoSize(pub(crate) Option<Bytes>);

/// A time in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Millis(pub(crate) u64);

/// A share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share(pub(crate) Ppm);

impl Millis {
    pub(crate) const fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

/// Reads a TOML string through `read`; a bare number is told apart, since it is the likeliest mistake.
struct Text<F> {
    what: &'static str,
    read: F,
}

impl<T, F: FnOnce(&str) -> Result<T, String>> de::Visitor<'_> for Text<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.read)(text).map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let read =
            |text: &str| text.parse().map(Self).map_err(|e: plimsoll_units::ParseSizeError| e.to_string());
        from.deserialize_str(Text { what: "a size with its unit in quotes, such as \"512M\"", read })
    }
}

impl<'de> Deserialize<'de> for AutoSize {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let read = |text: &str| match text.trim() {
            "auto" => Ok(Self(None)),
            size => {
                size.parse().map(|b| Self(Some(b))).map_err(|e: plimsoll_units::ParseSizeError| e.to_string())
            }
        };
        from.deserialize_str(Text {
            what: "\"auto\", or a size with its unit in quotes, such as \"512M\"",
            read,
        })
    }
}

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let read = |text: &str| {
            let millis = parse_duration(text)?.as_millis();
            u64::try_from(millis).map(Self).map_err(|_| format!("`{text}` is too long"))
        };
        from.deserialize_str(Text { what: "a time with its unit in quotes, such as \"250ms\"", read })
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let read = |text: &str| parse_share(text).map(Self);
        from.deserialize_str(Text { what: "a share in quotes, such as \"12.5%\"", read })
    }
}
