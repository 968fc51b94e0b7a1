//! Against this kernel; said loudly where it gives no userfaultfd.

#[cfg(test)]
mod faults;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod handover;
#[cfg(test)]
mod protection;
#[cfg(test)]
mod removal;
#[cfg(test)]
mod waiters;
