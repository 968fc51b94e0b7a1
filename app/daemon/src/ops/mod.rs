//! What can be asked of the daemon: the API without its HTTP.

mod change;
mod error;
mod register;

use plimsoll_model::VmName;

pub(crate) use error::Refusal;

fn unknown(name: &VmName) -> Refusal {
    Refusal::not_found(format!("no VM is called `{name}`; `plimsoll list` shows those there are"))
}
