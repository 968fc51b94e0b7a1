//! Pagers on the real kernel. The guests are threads of this process, which touch memory that a userfaultfd watches.

#[cfg(test)]
mod balloon;
#[cfg(test)]
mod boot;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod exhausted;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod hints;
#[cfg(test)]
mod huge;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod odd;
#[cfg(test)]
mod pins;
#[cfg(test)]
mod race;
#[cfg(test)]
mod sweeps;
#[cfg(test)]
mod wakes;
