from api.event_stream import StreamedEvent, read_events


def test_event_without_a_name_is_a_message():
    assert list(read_events(["data: x", ""])) == [StreamedEvent("message", "x", None)]


def test_data_of_several_lines_is_joined():
    assert list(read_events(["data: a", "data:b", ""])) == [StreamedEvent("message", "a\nb", None)]


def test_comments_and_empty_events_are_skipped():
    assert list(read_events([": ping", "", "event: claimed", "", ":", "retry: 5", ""])) == []


def test_id_belongs_to_its_own_event():
    first, second = read_events(["id: 1", "data: a", "", "data: b", ""])
    assert (first.id, second.id) == ("1", None)
