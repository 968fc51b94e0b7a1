//! The library as it ships, in a program that does what VMMs do, with these tests as its pager.

#[cfg(test)]
mod bed;
#[cfg(test)]
mod handing_over;
#[cfg(test)]
mod hints;
#[cfg(test)]
mod ledger;
#[cfg(test)]
mod library;
#[cfg(test)]
mod loss;
#[cfg(test)]
mod pager;
#[cfg(test)]
mod qemu;
#[cfg(test)]
mod refusals;
