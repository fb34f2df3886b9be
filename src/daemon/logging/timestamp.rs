//! The time in front of a line.

use jiff::fmt::strtime::{BrokenDownTime, Config, PosixCustom};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use super::settings::LogSettings;

/// qdrouterd's format: `2026-11-22 12:07:12.899143 +0000`.
const DEFAULT_FORMAT: &str = "%Y-%m-%d %H:%M:%S.%6f %z";
/// How a `timestampFormat` spells the microseconds (qdrouterd 1.19: it is a `printf` format after `strftime`).
const MICROSECONDS: &str = "%%06lu";

/// Writes the current time in the configured format and zone.
#[derive(Debug)]
pub(super) struct Clock {
    zone: TimeZone,
    format: String,
    config: Config<PosixCustom>,
}

impl Clock {
    pub(super) fn new(settings: &LogSettings) -> Self {
        Clock {
            zone: if settings.timestamps_in_utc {
                TimeZone::UTC
            } else {
                TimeZone::system()
            },
            format: settings
                .timestamp_format
                .as_deref()
                .map_or_else(|| DEFAULT_FORMAT.to_owned(), strtime_format),
            // A directive that only some C library knows is printed as it stands; `check_format` has warned of it.
            config: config().lenient(true),
        }
    }

    /// Appends the current time.
    pub(super) fn write_now(&self, line: &mut String) {
        self.write(&Timestamp::now().to_zoned(self.zone.clone()), line);
    }

    fn write(&self, time: &Zoned, line: &mut String) {
        // Cannot fail: a lenient format has no errors, and neither has a String.
        let _ = BrokenDownTime::from(time).format_with_config(&self.config, &self.format, line);
    }
}

/// Whether every directive of a `timestampFormat` is known here.
///
/// # Errors
/// What is wrong, in one line.
pub fn check_format(format: &str) -> Result<(), String> {
    BrokenDownTime::from(&Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC))
        .to_string_with_config(&config(), strtime_format(format))
        .map(drop)
        .map_err(|error| error.to_string())
}

fn strtime_format(format: &str) -> String {
    format.replace(MICROSECONDS, "%6f")
}

/// `%c`, `%x` and their like mean what they mean in the C locale.
fn config() -> Config<PosixCustom> {
    Config::new().custom(PosixCustom::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(format: Option<&str>) -> Clock {
        Clock::new(&LogSettings {
            timestamps_in_utc: true,
            timestamp_format: format.map(str::to_owned),
            ..LogSettings::default()
        })
    }

    fn written(format: Option<&str>, zone: TimeZone) -> String {
        let time = Timestamp::from_microsecond(1_795_349_232_000_143)
            .expect("in range")
            .to_zoned(zone);
        let mut line = String::new();
        clock(format).write(&time, &mut line);
        line
    }

    #[test]
    fn formats() {
        let rome = || TimeZone::fixed(jiff::tz::offset(1));
        assert_eq!(written(None, TimeZone::UTC), "2026-11-22 12:07:12.000143 +0000");
        assert_eq!(written(None, rome()), "2026-11-22 13:07:12.000143 +0100");
        assert_eq!(
            written(Some("%d/%m/%y %H:%M:%S.%%06lu"), TimeZone::UTC),
            "22/11/26 12:07:12.000143"
        );
        assert_eq!(written(Some("%c"), TimeZone::UTC), "Sun Nov 22 12:07:12 2026");
        assert_eq!(written(Some("100%% %Q!"), TimeZone::UTC).get(..5), Some("100% "));
    }

    #[test]
    fn now_is_now() {
        let (mut line, before) = (String::new(), Timestamp::now());
        clock(Some("%s")).write_now(&mut line);
        let seconds: i64 = line.parse().expect("seconds");
        assert!((before.as_second()..=Timestamp::now().as_second()).contains(&seconds));
    }

    #[test]
    fn unknown_directives_are_found() {
        assert_eq!(check_format("%Y-%m-%d %H:%M:%S.%%06lu %z %c %x"), Ok(()));
        let reason = check_format("%Y %!").expect_err("no such directive");
        assert!(!reason.contains('\n'), "{reason}");
    }
}
